"""A disk file of the host's as what stands behind a SCSI unit."""

from __future__ import annotations

import ctypes
import errno
import os

from kvmkit.block.file import DiskFile

KEEP_SIZE, PUNCH_HOLE, ZERO_RANGE = 1, 2, 0x10  # <linux/falloc.h>
NOT_OFFERED = (errno.EOPNOTSUPP, errno.ENOSYS, errno.ENODEV, errno.EINVAL)
ZEROS = bytes(1 << 16)


class FileMedium:
    """`file`, which `close` closes. Every method but `close` raises OSError when the host fails."""

    def __init__(self, file: DiskFile) -> None:
        self.file = file
        self._fallocate = ctypes.CDLL(None, use_errno=True).fallocate
        self._fallocate.argtypes = (ctypes.c_int, ctypes.c_int, ctypes.c_int64, ctypes.c_int64)

    @property
    def size(self) -> int:
        return self.file.size

    @property
    def readonly(self) -> bool:
        return self.file.readonly

    def read(self, offset: int, length: int) -> bytes:
        data = b""
        while len(data) < length:
            part = os.pread(self.file.fd, length - len(data), offset + len(data))
            if not part:
                raise OSError(errno.EIO, "the file is shorter than it was")
            data += part
        return data

    def write(self, offset: int, data: bytes) -> None:
        done = 0
        while done < len(data):
            done += os.pwrite(self.file.fd, data[done:], offset + done)

    def flush(self) -> None:
        os.fdatasync(self.file.fd)

    def discard(self, offset: int, length: int) -> None:
        """Give the space back. It reads as zeros afterwards, whether the host can do that or not."""
        if not self._change(PUNCH_HOLE, offset, length):
            self._write_zeros(offset, length)

    def zero(self, offset: int, length: int) -> None:
        if not self._change(ZERO_RANGE, offset, length):
            self._write_zeros(offset, length)

    def _change(self, how: int, offset: int, length: int) -> bool:
        """fallocate(2). False: the file system does not offer it."""
        if self._fallocate(self.file.fd, how | KEEP_SIZE, offset, length) == 0:
            return True
        error = ctypes.get_errno()
        if error in NOT_OFFERED:
            return False
        raise OSError(error, os.strerror(error))

    def _write_zeros(self, offset: int, length: int) -> None:
        for at in range(0, length, len(ZEROS)):
            self.write(offset + at, ZEROS[: length - at])

    def close(self) -> None:
        self.file.close()
