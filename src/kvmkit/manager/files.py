"""Files of an open directory: read whole, and replaced whole or not at all.

By the directory's descriptor, so that a VM that is renamed goes on with its own files.
"""

from __future__ import annotations

import errno
import os
from contextlib import suppress

LARGEST = 16 << 20


def text(data: str) -> str:
    """The same, fit for JSON: a name that is not UTF-8 has surrogates in it."""
    return data.encode("utf-8", "replace").decode()


def read(directory: int, name: str) -> bytes:
    fd = os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=directory)
    try:
        pieces = []
        left = LARGEST
        while left and (data := os.read(fd, min(left, 1 << 16))):
            pieces.append(data)
            left -= len(data)
        return b"".join(pieces)
    finally:
        os.close(fd)


def replace(directory: int, name: str, data: bytes, *, sync: bool = False) -> None:
    """Write `data` to a temporary file beside `name`, and rename it. Raises OSError; the old file is there then."""
    temporary = f".{name}.{os.getpid()}"
    fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC, 0o600, dir_fd=directory)
    try:
        try:
            view = memoryview(data)
            while view:
                view = view[os.write(fd, view) :]
            if sync:
                os.fsync(fd)
        finally:
            os.close(fd)
        os.rename(temporary, name, src_dir_fd=directory, dst_dir_fd=directory)
    except BaseException:
        try:
            os.unlink(temporary, dir_fd=directory)
        except OSError:
            pass
        raise


SPARE_BYTES = 4096


def set_aside(directory: int, name: str) -> None:
    """Keep room on the disk for one more version of `name`. A disk without it is told of by nobody: it is full."""
    try:
        fd = os.open(_spare(name), os.O_WRONLY | os.O_CREAT | os.O_CLOEXEC, 0o600, dir_fd=directory)
        try:
            os.posix_fallocate(fd, 0, SPARE_BYTES)
        finally:
            os.close(fd)
    except OSError:
        pass


def _spare(name: str) -> str:
    return f".{name}.spare"


def replace_or_use_spare(directory: int, name: str, data: bytes) -> None:
    """`replace`; on a full disk, by the room that was set aside. What is replaced is the next one's room."""
    try:
        replace(directory, name, data)
    except OSError as error:
        if error.errno not in (errno.ENOSPC, errno.EDQUOT) or len(data) > SPARE_BYTES:
            raise
        _replace_by_spare(directory, name, data)


def _replace_by_spare(directory: int, name: str, data: bytes) -> None:
    spare, old = _spare(name), f".{name}.old"
    try:
        fd = os.open(spare, os.O_WRONLY | os.O_CLOEXEC, dir_fd=directory)
    except FileNotFoundError:  # none was set aside
        raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)) from None
    try:
        os.pwrite(fd, data.ljust(SPARE_BYTES), 0)  # JSON may end in spaces; and its room stays whole
    finally:
        os.close(fd)
    try:
        with suppress(FileNotFoundError):  # of one that was killed at this
            os.unlink(old, dir_fd=directory)
        os.link(name, old, src_dir_fd=directory, dst_dir_fd=directory)
    except OSError:
        old = ""
    os.rename(spare, name, src_dir_fd=directory, dst_dir_fd=directory)
    if old:
        os.rename(old, spare, src_dir_fd=directory, dst_dir_fd=directory)


def remove_tree(path: str | os.PathLike[str]) -> None:
    """Remove a directory of this user's own with all that is in it; what can't be removed stays. (shutil's loads
    compression libraries, which each run would pay for.)"""
    try:
        with os.scandir(path) as entries:
            for entry in entries:
                if entry.is_dir(follow_symlinks=False):
                    remove_tree(entry.path)
                else:
                    os.unlink(entry.path)
        os.rmdir(path)
    except OSError:
        pass
