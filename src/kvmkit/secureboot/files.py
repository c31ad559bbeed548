"""Files: read whole, and replaced whole or not at all."""

from __future__ import annotations

import fcntl
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from kvmkit.errors import BadInput, HostError

LARGEST_IMAGE = 64 << 20  # the largest OVMF there is has 16 MiB
LARGEST_KEY = 4 << 20  # a certificate has some KiB, the UEFI Forum's dbx less than 100


def read(path: Path, largest: int = LARGEST_KEY) -> bytes:
    """All of a regular file. BadInput: it can't be read, or has more than `largest` bytes."""
    try:
        with open(path, "rb", opener=_at_once) as file:
            found = os.fstat(file.fileno())
            if not stat.S_ISREG(found.st_mode):
                raise BadInput(f"{path}: is not a file")
            if found.st_size > largest:
                raise BadInput(f"{path}: is too large ({found.st_size} bytes) to be what is wanted")
            return file.read(largest)
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None


def _at_once(path: str, flags: int) -> int:
    return os.open(path, flags | os.O_NONBLOCK)  # a FIFO would be waited for


@contextmanager
def locked(path: Path) -> Iterator[None]:
    """Keep a machine from opening a store meanwhile, if it is there. BadInput: one has it."""
    try:
        fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except FileNotFoundError:
        yield
        return
    except OSError as error:
        raise BadInput(f"{path}: {error.strerror}") from None
    try:
        try:
            fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise BadInput(f"{path}: a VM that runs has it: stop it first") from None
        yield
    finally:
        os.close(fd)


def replace(path: Path, data: bytes) -> None:
    """Write a file anew, or in place of the one that is there, whose mode and owner it keeps. HostError.

    Whenever this is cut short, the old file is there, or the new one.
    """
    target = Path(os.path.realpath(path))
    temporary = ""
    try:
        fd, temporary = tempfile.mkstemp(prefix=f".{target.name}.", dir=target.parent)
        with open(fd, "wb") as file:
            _as_it_was(file.fileno(), target)
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.rename(temporary, target)
        temporary = ""
        directory = os.open(target.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        try:
            os.fsync(directory)
        finally:
            os.close(directory)
    except OSError as error:
        raise HostError(f"can't write {path}: {error.strerror}") from None
    finally:
        if temporary:
            os.unlink(temporary)


def _as_it_was(fd: int, target: Path) -> None:
    try:
        old = target.stat()
    except FileNotFoundError:
        mask = os.umask(0)
        os.umask(mask)
        os.fchmod(fd, 0o666 & ~mask)
        return
    new = os.fstat(fd)
    if (old.st_uid, old.st_gid) != (new.st_uid, new.st_gid):
        os.fchown(fd, old.st_uid, old.st_gid)
    os.fchmod(fd, stat.S_IMODE(old.st_mode))
