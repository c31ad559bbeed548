"""Disks, and UEFI variables, whose changes are thrown away: the guest has a copy that goes with the machine.

No name leads to it. Where the file system shares blocks (Btrfs, XFS) the copy costs nothing; elsewhere it is made, but
for the holes. It lies in TMPDIR, else /var/tmp.
"""

from __future__ import annotations

import errno
import fcntl
import os
from collections.abc import Iterator
from typing import TypeVar

import msgspec

from kvmkit.errors import HostError
from kvmkit.machine.spec import Disk, MachineSpec, ScsiDisk

FICLONE = 0x40049409  # <linux/fs.h>
PIECE = 4 << 20
D = TypeVar("D", Disk, ScsiDisk)


class Copies:
    """The copies for `spec`, and `spec` with them in place. `close` when no machine uses them."""

    def __init__(self, spec: MachineSpec) -> None:
        self._open: list[int] = []
        try:
            disks = tuple(self._copied(disk) for disk in spec.disks)
            scsi = tuple(self._copied(unit) for unit in spec.scsi)
            nvram = self._variables(spec) if spec.uefi and not spec.nvram else spec.nvram
        except BaseException:
            self.close()
            raise
        self.spec = msgspec.structs.replace(spec, disks=disks, scsi=scsi, nvram=nvram)

    def _variables(self, spec: MachineSpec) -> str:
        """UEFI's, in memory."""
        from kvmkit.boot import uefi

        image = uefi.read(spec.firmware, secure_boot=spec.secure_boot, template=spec.nvram_template)
        fd = os.memfd_create("kvmkit-nvram", os.MFD_CLOEXEC)
        self._open.append(fd)
        os.write(fd, image.variables)
        return f"/proc/self/fd/{fd}"

    def _copied(self, disk: D) -> D:
        if not disk.snapshot or disk.readonly or (isinstance(disk, ScsiDisk) and disk.cdrom):
            return disk
        fd = copy(disk.path)
        self._open.append(fd)
        return msgspec.structs.replace(disk, path=f"/proc/self/fd/{fd}", snapshot=False)

    def close(self) -> None:
        while self._open:
            os.close(self._open.pop())


def copy(path: str) -> int:
    """An open file without a name that holds what the disk at `path` holds. Raises BadInput or HostError, in a line."""
    from kvmkit.block.file import DiskFile

    place = os.environ.get("TMPDIR") or "/var/tmp"
    source = DiskFile(path, readonly=True)
    fd = -1
    try:
        fd = os.open(place, os.O_TMPFILE | os.O_RDWR | os.O_CLOEXEC, 0o600)
        try:
            fcntl.ioctl(fd, FICLONE, source.fd)
        except OSError:
            os.ftruncate(fd, source.size)
            for start, end in _data(source.fd, source.size):
                _copy(source.fd, fd, start, end)
        return fd
    except BaseException as error:
        if fd >= 0:
            os.close(fd)
        if not isinstance(error, OSError):
            raise
        raise HostError(
            f"disk {path}: no copy of its {source.size >> 20} MiB to be thrown away can be made in {place} "
            f"({error.strerror}); name a directory with room by TMPDIR"
        ) from error
    finally:
        source.close()


def _data(fd: int, size: int) -> Iterator[tuple[int, int]]:
    """[start, end) of what is no hole."""
    end = 0
    while end < size:
        try:
            start = os.lseek(fd, end, os.SEEK_DATA)
            end = os.lseek(fd, start, os.SEEK_HOLE)
        except OSError as error:
            if error.errno == errno.ENXIO:
                return  # a hole up to the end
            start, end = end, size  # a block device
        yield start, min(end, size)


def _copy(source: int, target: int, start: int, end: int) -> None:
    buffer = memoryview(bytearray(min(PIECE, end - start)))
    while start < end:
        count = os.preadv(source, [buffer[: end - start]], start)
        if not count:
            raise OSError(errno.EIO, "it became shorter")
        piece = buffer[:count]
        while piece:
            done = os.pwrite(target, piece, start)
            start += done
            piece = piece[done:]
