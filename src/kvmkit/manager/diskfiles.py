"""Disks of the user's own: made, made larger, looked at. Raw ones here, qcow2 ones by qemu-img."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kvmkit.block.file import DiskFile
from kvmkit.block.holder import locked_image, opener
from kvmkit.errors import BadInput, KvmkitError
from kvmkit.guest import qemu_img

SMALLEST = 512
LARGEST = 1 << 60
FORMATS = ("raw", "qcow2")
_MAGIC = {b"QFI\xfb": "qcow2", b"KDMV": "vmdk", b"vhdxfile": "vhdx"}


class Info(msgspec.Struct, frozen=True, omit_defaults=True):
    """What is known of a disk. Sizes in bytes; `used` is what it takes on the host."""

    path: str
    format: str
    size: int
    used: int
    backing: str = ""
    """The disk that an overlay is above."""
    in_use: str = ""
    """By whom it is locked."""


def create(path: Path, size: int, form: str = "", *, base: Path | None = None) -> None:
    """Make a disk of `size` bytes (0: as large as its base), of which nothing takes room yet. BadInput: it can't be."""
    form = form or ("qcow2" if base is not None or path.suffix == ".qcow2" else "raw")
    if form not in FORMATS:
        raise BadInput(f"--format {form}: there are {', '.join(FORMATS)}")
    if base is not None and form != "qcow2":
        raise BadInput("an overlay above another disk is a qcow2: leave --format raw out, or --base")
    if base is None and not SMALLEST <= size <= LARGEST:
        raise BadInput("SIZE is missing" if not size else f"a disk of {size} bytes can't be")
    if path.is_symlink() or path.exists():
        raise BadInput(f"{path} is there already: choose another name")
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        if form == "raw":
            with work.open("xb") as file:
                file.truncate(size)
        else:
            above = ["-b", str(base.absolute()), "-F", _format(base)] if base is not None else []
            qemu_img.call("create", "-q", "-f", form, *above, str(work), *([str(size)] if size else []))
        os.link(work, path)  # unlike a rename, never onto a file that came meanwhile
    except FileExistsError:
        raise BadInput(f"{path} is there already: choose another name") from None
    except OSError as error:
        raise BadInput(f"can't make {path}: {error.strerror}") from None
    finally:
        work.unlink(missing_ok=True)


def resize(path: Path, size: int, *, shrink: bool = False) -> None:
    """Change its size. BadInput: it is in use, or would become smaller, without `shrink`."""
    found = info(path)
    if size < found.size and not shrink:
        raise BadInput(f"{path}: has {found.size} bytes already; --shrink cuts off what is beyond {size}, for good")
    if found.in_use:
        raise BadInput(f"{path}: in use by {found.in_use}; end that first, or use `kvmkit set` on the VM")
    if found.format == "raw":
        disk = DiskFile(str(path))
        try:
            os.ftruncate(disk.fd, size)
            os.fsync(disk.fd)
        except OSError as error:
            raise BadInput(f"{path}: {error.strerror}") from None
        finally:
            disk.close()
    else:
        _call("resize", "-q", "-f", found.format, *(["--shrink"] if shrink else []), str(path), str(size))


def commit(path: Path) -> str:
    """Write an overlay's changes into the disk it is above, which is returned; the overlay is then empty."""
    found = info(path)
    if not found.backing:
        raise BadInput(f"{path}: is no overlay: it is above no other disk")
    for each in (found, info(Path(found.backing))):
        if each.in_use:
            raise BadInput(f"{each.path}: in use by {each.in_use}; end that first")
    _call("commit", "-q", "-f", found.format, str(path))
    return found.backing


def check(path: Path) -> list[str]:
    """What is wrong with it, a line each."""
    found = info(path)
    if found.in_use and found.format != "raw":
        raise BadInput(f"{path}: in use by {found.in_use}; end that first")
    if found.format == "raw":
        return [] if found.size and found.size % SMALLEST == 0 else [f"{path}: {found.size} bytes are no raw disk"]
    try:
        qemu_img.call("check", "-q", "-f", found.format, str(path), good=(0, 63))
    except KvmkitError as error:
        return [f"{path}: {error}"]
    return []


def info(path: Path) -> Info:
    """BadInput: there is no such disk."""
    form = _format(path)
    found = path.stat()
    size, backing, user = found.st_size, "", ""
    if form != "raw":
        try:
            told = qemu_img.info(path, form)
        except KvmkitError as error:
            if not (image := locked_image(str(error))):
                raise
            user = opener(image)
            told = qemu_img.info(path, form, shared=True)
        size, backing = int(told["virtual-size"]), str(told.get("full-backing-filename") or "")
    elif not path.is_file():
        with path.open("rb") as file:
            size = file.seek(0, os.SEEK_END)
    return Info(str(path), form, size, found.st_blocks * 512, backing, user or _in_use(path))


def _call(*words: str) -> None:
    """qemu-img, for what needs an image that nobody uses. BadInput: somebody does."""
    try:
        qemu_img.call(*words)
    except KvmkitError as error:
        if not (image := locked_image(str(error))):
            raise
        raise BadInput(f"{image}: in use by {opener(image)}; end that first") from None


def _format(path: Path) -> str:
    try:
        if not path.is_file() and not path.is_block_device():
            raise BadInput(f"{path}: {'neither a file nor a block device' if path.exists() else 'no such file'}")
        with path.open("rb") as file:
            head = file.read(8)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    return next((form for magic, form in _MAGIC.items() if head.startswith(magic)), "raw")


def _in_use(path: Path) -> str:
    """Who has it locked, so that it may not be changed."""
    import fcntl

    from kvmkit.block.holder import holder

    with path.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return holder(file.fileno())
    return ""
