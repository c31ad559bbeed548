"""What is pushed into the test host: the checkout, the Python packages its tests need, guest images.

A part is a tar, and is sent only when its digest is not the one the host has.
"""

from __future__ import annotations

import hashlib
import io
import os
import tarfile
from collections.abc import Iterable
from importlib import metadata
from pathlib import Path

from kvmkit.errors import HostError

from .host import CHECKOUT, PARTS_BYTES, Host

SKIPPED = {"__pycache__", ".hypothesis", ".pytest_cache"}
TOP = ["src", "tests", "bench", "pyproject.toml", "kvmkit", "test"]
DISTRIBUTIONS = ["msgspec", "rich", "zstandard", "lz4", "pytest", "pytest-timeout", "hypothesis"]
"""Names whose files, with those of what they depend on, make the packages inside."""

Files = list[tuple[str, Path]]
"""A name in the tar, and the file it is."""


def checkout() -> Files:
    found: Files = []
    for top in TOP:
        path = CHECKOUT / top
        if path.is_dir():
            found += [(str(file.relative_to(CHECKOUT)), file) for file in walk(path)]
        elif path.is_file():
            found.append((top, path))
    return found


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


def tar(files: Files) -> bytes:
    """A tar of the same bytes for the same files: names, contents and permissions, no times or owners."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, path in files:
            data = path.read_bytes()
            info = tarfile.TarInfo(name)
            info.size, info.mode = len(data), path.stat().st_mode & 0o777
            archive.addfile(info, io.BytesIO(data))
    return out.getvalue()


def push(host: Host, name: str, files: Files) -> bool:
    """Make /kvmkit/NAME in the host hold exactly `files`. False if it did already."""
    data = tar(files)
    digest = hashlib.sha256(data).hexdigest()
    if host.channel.hello["parts"].get(name) == digest:
        return False
    if len(data) > PARTS_BYTES:
        raise HostError(f"{len(data) >> 20} MiB of {name} are more than the KVM test host's disk for them holds")
    with open(host.parts_file, "r+b") as disk:
        disk.write(data)
    host.channel.request({"unpack": name, "digest": digest, "size": len(data)}, timeout=120)
    return True


def images() -> Files:
    """The image `tiny` from this machine's cache, so that nothing is built inside."""
    from kvmkit.guest.images import directory_of

    directory = directory_of("tiny")
    place = f"kvmkit/images/tiny/{directory.name}"
    return [(f"{place}/{name}", path) for name, path in tree(directory)]
