"""What is pushed into the test host: the checkout, the Python packages its tests need, guest images.

A part is a tar, and is sent only when its digest is not the one the host has. Python files come with their compiled
form, as an installed package's do: compiling them inside would take the host's slow processor a minute.
"""

from __future__ import annotations

import hashlib
import importlib.util
import io
import marshal
import os
import shutil
import sys
import tarfile
import tempfile
from collections.abc import Iterable
from contextlib import suppress
from importlib import metadata
from pathlib import Path

from _pytest.outcomes import Skipped

from kvmkit.errors import HostError

from .host import CHECKOUT, PARTS_BYTES, Host

SKIPPED = {"__pycache__", ".hypothesis", ".pytest_cache"}
TOP = ["src", "tests", "bench", "pyproject.toml", "kvmkit", "test"]
DISTRIBUTIONS = ["msgspec", "rich", "zstandard", "lz4", "pytest", "pytest-timeout", "hypothesis"]
"""Names whose files, with those of what they depend on, make the packages inside."""

Files = list[tuple[str, Path]]
"""A name in the tar, and the file it is."""


def checkout() -> Files:
    assemble()
    found: Files = []
    for top in TOP:
        path = CHECKOUT / top
        if path.is_dir():
            found += [(str(file.relative_to(CHECKOUT)), file) for file in walk(path)]
        elif path.is_file():
            found.append((top, path))
    return found


def assemble() -> None:
    """Have the VMM that a guest in there runs assembled here: the host has no assembler."""
    sys.path.insert(0, str(CHECKOUT / "tests" / "microguests"))
    from nested import vmm

    with suppress(Skipped):  # nor have we: its test says so
        vmm()


def walk(top: Path) -> Iterable[Path]:
    for where, directories, names in os.walk(top):
        directories[:] = sorted(set(directories) - SKIPPED)
        for name in sorted(names):
            if (Path(where) / name).is_file():  # not a socket, not a dead link
                yield Path(where) / name


def packages() -> Files:
    """The installed files of DISTRIBUTIONS and all they require here."""
    wanted, seen, found = list(DISTRIBUTIONS), set(), []
    while wanted:
        name = wanted.pop()
        if name in seen:
            continue
        seen.add(name)
        try:
            distribution = metadata.distribution(name)
        except metadata.PackageNotFoundError:
            if name in DISTRIBUTIONS:
                raise HostError(f"the KVM test host needs the Python package {name}: pip install {name}") from None
            continue  # an extra, or for another system
        wanted += [requirement_name(text) for text in distribution.requires or [] if "extra ==" not in text]
        for file in distribution.files or []:
            path = Path(str(file.locate()))
            inside = ".." not in file.parts and not SKIPPED.intersection(file.parts)
            if inside and path.is_file():
                found.append((str(file), path))
    return sorted(found)


def requirement_name(text: str) -> str:
    """`pluggy` of `pluggy<2,>=1.5; python_version > "3"`."""
    end = next((at for at, letter in enumerate(text) if letter not in "-_." and not letter.isalnum()), len(text))
    return text[:end]


def tree(top: Path) -> Files:
    """Every file below `top`, by its path from there."""
    return [(str(path.relative_to(top)), path) for path in walk(top)]


def tar(files: Files) -> tuple[bytes, str]:
    """A tar of names, contents and permissions, without times or owners; and a digest of these."""
    out = io.BytesIO()
    digest = hashlib.sha256()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:

        def add(name: str, mode: int, data: bytes) -> None:
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), mode
            archive.addfile(info, io.BytesIO(data))

        for name, path in files:
            data, mode = path.read_bytes(), path.stat().st_mode & 0o777
            add(name, mode, data)
            digest.update(f"{name} {mode} {len(data)}\n".encode() + data)
            if name.endswith(".py") and (code := compiled(path, data)):
                add(importlib.util.cache_from_source(name), 0o644, code)
    return out.getvalue(), digest.hexdigest()


def compiled(path: Path, source: bytes) -> bytes:
    """The .pyc of a file whose time is 0 in the host; empty if it can't be compiled. Python finds the right file name
    for itself."""
    # The layout: PEP 552. What this machine has compiled already is only given the other time.
    head, size = importlib.util.MAGIC_NUMBER + bytes(4), len(source).to_bytes(4, "little")
    time = (int(path.stat().st_mtime) & 0xFFFFFFFF).to_bytes(4, "little")
    try:
        code = Path(importlib.util.cache_from_source(str(path))).read_bytes()
    except OSError:
        code = b""
    if code.startswith(head + time + size):
        return head + bytes(4) + code[12:]
    try:
        return head + bytes(4) + size + marshal.dumps(compile(source, str(path), "exec", dont_inherit=True))
    except (SyntaxError, ValueError):
        return b""


def push(host: Host, name: str, files: Files) -> bool:
    """Make /kvmkit/NAME in the host hold exactly `files`. False if it did already."""
    data, digest = tar(files)
    if host.channel.hello["parts"].get(name) == digest:
        return False
    if len(data) > PARTS_BYTES:
        raise HostError(f"{len(data) >> 20} MiB of {name} are more than the KVM test host's disk for them holds")
    with open(host.parts_file, "r+b") as disk:
        disk.write(data)
    host.channel.request({"unpack": name, "digest": digest, "size": len(data)}, timeout=120)
    return True


def disk() -> Files:
    """A disk with SYSLINUX and the default guest's kernel, made once for each image; none where a tool is missing."""
    from kvmkit.guest import images as guest_images

    from .image import cache_directory

    sys.path.insert(0, str(CHECKOUT / "tests" / "machine"))
    from bootable import TOOLS, linux_disk

    if any(shutil.which(tool) is None for tool in TOOLS):
        return []
    image = guest_images.ensure()
    made = cache_directory() / f"disk-{image.kernel.parent.name}"
    if not made.exists():
        made.parent.mkdir(parents=True, exist_ok=True)
        work = Path(tempfile.mkdtemp(prefix="building-", dir=made.parent))
        append = f"console=ttyS0 {image.append} panic=-1 kvmkit.channel=console quiet"
        linux_disk(work, image.kernel, image.initrd, append, mebibytes=32)
        try:
            work.rename(made)
        except OSError:
            shutil.rmtree(work)  # somebody else made it meanwhile
    return [("linux.raw", made / "linux.raw")]


def images() -> Files:
    """The image `tiny` from this machine's cache, so that nothing is built inside."""
    from kvmkit.guest.images import directory_of

    directory = directory_of("tiny")
    place = f"kvmkit/images/tiny/{directory.name}"
    return [(f"{place}/{name}", path) for name, path in tree(directory)]
