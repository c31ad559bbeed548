"""Opening what a user names as a kernel or an initrd: regular files only, and mapped, so that nothing is read twice."""

from __future__ import annotations

import mmap
import os
import stat
from pathlib import Path

from kvmkit.errors import BadInput

MAX_KERNEL = 1 << 30
"""No kernel is larger; a sparse file of a terabyte must not keep us reading."""

EAGER = 256 << 20
"""Files up to here are mapped with all their pages at once; a larger one may yet turn out not to fit."""


class Source:
    """A file of `size` bytes, open for reading: `stat` as it was when opened, `head` its first 8 KiB.

    Raises BadInput, in words that start with `what` and the path, when it can't be opened or is no regular file.
    """

    def __init__(self, path: Path, what: str) -> None:
        self.path = path
        try:
            # O_NONBLOCK: opening a FIFO nobody writes to would otherwise never return.
            self.fd = os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except (OSError, ValueError) as error:
            reason = error.strerror if isinstance(error, OSError) else str(error)
            raise BadInput(f"can't open {what} {path}: {reason}") from error
        try:
            self.stat = os.fstat(self.fd)
            if not stat.S_ISREG(self.stat.st_mode):
                kind = "a directory" if stat.S_ISDIR(self.stat.st_mode) else "not a regular file"
                raise BadInput(f"can't use {what} {path}: it is {kind}")
            self.size = self.stat.st_size
            self.head = os.pread(self.fd, 8192, 0)
        except OSError as error:
            os.close(self.fd)
            raise BadInput(f"can't read {what} {path}: {error.strerror}") from error
        except BadInput:
            os.close(self.fd)
            raise

    def map(self) -> memoryview:
        """All of the file, read-only. The mapping ends with the last view."""
        if not self.size:
            return memoryview(b"")
        flags = mmap.MAP_PRIVATE
        if self.size <= EAGER:
            flags |= mmap.MAP_POPULATE
        return memoryview(mmap.mmap(self.fd, self.size, flags=flags, prot=mmap.PROT_READ))

    def close(self) -> None:
        os.close(self.fd)

    def __enter__(self) -> Source:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
