"""What an image is to be built of, as a TOML file says it."""

from __future__ import annotations

import hashlib
import io
import os
import re
import tarfile
from pathlib import Path
from typing import Annotated

import msgspec
from msgspec import Meta

from kvmkit.errors import BadInput
from kvmkit.guest import library

_PACKAGE = re.compile(r"[a-z0-9][a-z0-9.+-]+(:[a-z0-9]+)?(=[A-Za-z0-9.+:~-]+)?", re.ASCII)
_MODE = re.compile(r"0?[0-7]{3,4}", re.ASCII)


class FileSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One file or directory to be put into the image: from a path (relative to the spec's file) or a text."""

    path: Annotated[str, Meta(description="a file or directory of the host")] = ""
    text: Annotated[str | None, Meta(description="the contents")] = None
    mode: Annotated[str, Meta(description='permissions, such as "0755"; none: as they are, or 0644')] = ""


class ImageSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """An image. Files are put in place first, then packages are installed, then commands run, in a VM."""

    name: Annotated[str, Meta(description="the image's name; none: the file's")] = ""
    base: Annotated[str, Meta(description="an image with a root disk")] = "debian"
    packages: Annotated[tuple[str, ...], Meta(description="of Debian's, from this machine's apt sources")] = ()
    files: Annotated[dict[str, FileSpec], Meta(description="by their path in the image")] = {}
    run: Annotated[tuple[str, ...], Meta(description="commands for sh, one after another")] = ()
    memory: Annotated[str | int, Meta(description="of the VM that builds it")] = "1G"
    root_size: Annotated[str | int, Meta(description="how much may be written")] = "8G"
    timeout: Annotated[float | None, Meta(description="seconds that it may take")] = None


class Checked(msgspec.Struct, frozen=True):
    """A spec whose every value can be, with the files' contents."""

    spec: ImageSpec
    name: str
    archive: bytes
    """The files, as a tar."""

    def key(self, base: str) -> str:
        """Changes with anything that makes the image: `base` is what tells the base from another."""
        known = msgspec.structs.replace(self.spec, name="", files={}, memory="", timeout=None)
        parts = [base.encode(), msgspec.json.encode(known), self.archive]
        return hashlib.sha256(b"".join(len(part).to_bytes(8, "big") + part for part in parts)).hexdigest()


def read(path: str, name: str = "") -> Checked:
    """The spec in a file. BadInput: `FILE:LINE: KEY: what is wrong`."""
    from kvmkit.manager.specfile import line_of, read_file

    text, spec = read_file(path, ImageSpec)

    def wrong(keys: list[str], why: str) -> BadInput:
        line = line_of(text, keys)
        return BadInput(f"{path}{f':{line}' if line else ''}: {'.'.join(keys)}: {why}")

    if not library.exists(spec.base):
        known = ", ".join([*library.BUILT_IN, *library.names()])
        raise wrong(["base"], f"no guest image {spec.base!r}; known: {known}")
    if spec.base == "tiny":
        raise wrong(["base"], "the image tiny has no root disk")
    for package in spec.packages:
        if _PACKAGE.fullmatch(package) is None:
            raise wrong(["packages"], f"{package!r} can't be a package's name")
    if any("\0" in command for command in spec.run):
        raise wrong(["run"], "a command can't hold a null byte")
    name = name or spec.name or Path(path).stem.lower()
    try:
        library.check_name(name)
    except BadInput as error:
        raise (wrong(["name"], str(error)) if spec.name == name else error) from None
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w", format=tarfile.PAX_FORMAT) as tar:
        for place, file in sorted(spec.files.items()):
            try:
                _add(tar, place, file, Path(path).absolute().parent)
            except (ValueError, OSError) as error:
                why = error.strerror if isinstance(error, OSError) and error.strerror else str(error)
                raise wrong(["files", place], f"{file.path}: {why}" if isinstance(error, OSError) else why) from None
    return Checked(spec, name, out.getvalue())


def _add(tar: tarfile.TarFile, place: str, file: FileSpec, base: Path) -> None:
    """Add one file, or a directory with all that is in it, as root's. Raises ValueError for what can't be."""
    if not place.startswith("/") or ".." in place.split("/") or "\0" in place or place.strip("/") == "":
        raise ValueError("give the whole path in the image, from / on")
    if (file.text is None) == (not file.path):
        raise ValueError("give either path or text")
    if file.mode and _MODE.fullmatch(file.mode) is None:
        raise ValueError(f'mode {file.mode!r}: give permissions such as "0755"')
    mode = int(file.mode, 8) if file.mode else None
    target = place.strip("/")
    if file.text is not None:
        _put(tar, target, file.text.encode(), mode if mode is not None else 0o644)
        return
    source = base / file.path
    if not source.is_dir():
        data = source.read_bytes()
        _put(tar, target, data, mode if mode is not None else source.stat().st_mode & 0o777)
        return
    for where, directories, names in os.walk(source):
        directories.sort()
        inside = os.path.relpath(where, source)
        below = target if inside == "." else f"{target}/{inside}"
        for name in sorted([*names, *(each for each in directories if os.path.islink(os.path.join(where, each)))]):
            path = os.path.join(where, name)
            if os.path.islink(path):
                member = tarfile.TarInfo(f"{below}/{name}")
                member.type, member.linkname = tarfile.SYMTYPE, os.readlink(path)
                tar.addfile(member)
            elif os.path.isfile(path):
                _put(tar, f"{below}/{name}", Path(path).read_bytes(), os.stat(path).st_mode & 0o777)


def _put(tar: tarfile.TarFile, name: str, data: bytes, mode: int) -> None:
    member = tarfile.TarInfo(name)
    member.size, member.mode = len(data), mode
    tar.addfile(member, io.BytesIO(data))
