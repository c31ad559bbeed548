"""Files of an open directory: read whole, and replaced whole or not at all.

By the directory's descriptor, so that a VM that is renamed goes on with its own files.
"""

from __future__ import annotations

import os

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
