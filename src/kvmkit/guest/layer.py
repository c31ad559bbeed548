"""A VM's own layer above its image's root disk: a sparse file with an empty ext4, copied from one made once."""

from __future__ import annotations

import errno
import os
import shutil
import subprocess
from pathlib import Path

from kvmkit.errors import BadInput, HostError
from kvmkit.guest import store
from kvmkit.paths import cache_dir

SMALLEST = 16 << 20
LARGEST = 16 << 40
DEFAULT = 16 << 30
"""Bytes; what is not written takes no room on the host."""
_OPTIONS = "lazy_itable_init=1,lazy_journal_init=1,nodiscard"


def make(path: Path, size: int = DEFAULT) -> None:
    """Make the layer. Nothing is left of it on an error. BadInput: the size can't be. HostError: the host refuses."""
    check_size(size)
    template = _template(size)
    work = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        copy_sparse(template, work)
        work.rename(path)
    except OSError as error:
        raise HostError(f"can't make {path}: {error.strerror}") from None
    finally:
        work.unlink(missing_ok=True)


def check_size(size: int) -> None:
    if not SMALLEST <= size <= LARGEST or size % 4096:
        raise BadInput(f"a root disk of {size} bytes: it can have 16 MiB to 16 TiB, in whole KiB times four")


def _template(size: int) -> Path:
    directory = cache_dir() / "layers"
    template = directory / f"{size}.ext4"
    if template.exists():
        return template
    program = shutil.which("mke2fs") or shutil.which("mke2fs", path="/sbin:/usr/sbin")
    if program is None:
        raise HostError("a VM's root disk needs mke2fs: apt-get install e2fsprogs (as root)")
    try:
        with store.locked(template):
            work = directory / f".{template.name}"
            work.unlink(missing_ok=True)
            with work.open("wb") as file:
                file.truncate(size)
            command = [program, "-q", "-F", "-t", "ext4", "-b", "4096", "-m", "0", "-E", _OPTIONS, str(work)]
            done = subprocess.run(command, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
            if done.returncode:
                said = " ".join(done.stderr.split()) or f"status {done.returncode}"
                work.unlink(missing_ok=True)
                raise HostError(f"mke2fs can't make a file system of {size} bytes: {said}")
            work.rename(template)
    except OSError as error:
        raise HostError(f"can't make {template}: {error.strerror}") from None
    return template


def copy_sparse(source: Path, target: Path) -> None:
    """Copy a file with its holes, within the kernel; where the file system can, the copy shares its blocks."""
    with source.open("rb") as reading, target.open("xb") as writing:
        end = os.fstat(reading.fileno()).st_size
        os.truncate(writing.fileno(), end)
        at = 0
        while at < end:
            try:
                start = os.lseek(reading.fileno(), at, os.SEEK_DATA)
            except OSError as error:
                if error.errno == errno.ENXIO:
                    break  # a hole to the end
                raise
            at = os.lseek(reading.fileno(), start, os.SEEK_HOLE)
            while start < at:
                start += _copy(reading.fileno(), writing.fileno(), start, at - start)


def _copy(source: int, target: int, offset: int, size: int) -> int:
    try:
        done = os.copy_file_range(source, target, size, offset, offset)
    except OSError as error:
        if error.errno not in (errno.EXDEV, errno.EINVAL, errno.ENOSYS, errno.EOPNOTSUPP):
            raise
        data = os.pread(source, min(size, 1 << 20), offset)
        done = os.pwrite(target, data, offset)
    if not done:
        raise OSError(errno.EIO, "the file became shorter while it was copied")
    return done
