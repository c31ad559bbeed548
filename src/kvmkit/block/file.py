"""Raw disk images and block devices of the host: opened, locked and measured."""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import stat

from kvmkit.errors import BadInput

SECTOR = 512
FILE_BLOCK = 4096
"""Bytes a file system moves at once."""
OWN_DESCRIPTORS = "/proc/self/fd/"
BLKSSZGET, BLKPBSZGET = 0x1268, 0x127B  # <linux/fs.h>


class DiskFile:
    """An open disk of `size` bytes. `fd` goes through the page cache; `direct_fd` (-1: none) past it (O_DIRECT).

    A writable one is locked against every other user that locks (flock, and O_EXCL for a block device). `physical` is
    the block size, in bytes, below which the host reads before it writes. `align` is what direct I/O wants of places,
    lengths and addresses. `raw`: it is known to be, whatever it holds. Raises BadInput in one line.
    """

    def __init__(self, path: str, *, readonly: bool = False, direct: bool = False, raw: bool = False) -> None:
        self.path = path
        self.readonly = readonly
        self.fd = self.direct_fd = -1
        try:
            self._open(direct, raw)
        except OSError as error:
            self.close()
            raise BadInput(f"disk {path}: {self._explain(error)}") from error
        except BaseException:
            self.close()
            raise

    def _open(self, direct: bool, raw: bool) -> None:
        # Not blocking: a path to a FIFO would have us wait for ever.
        flags = (os.O_RDONLY if self.readonly else os.O_RDWR) | os.O_CLOEXEC | os.O_NONBLOCK
        named = self.path
        if named.startswith(OWN_DESCRIPTORS):
            self.path = os.path.realpath(named)  # what its user calls it
        kind = os.stat(named).st_mode
        if stat.S_ISDIR(kind):
            raise BadInput(f"disk {self.path}: a directory; give a raw image file or a block device")
        if not stat.S_ISREG(kind) and not stat.S_ISBLK(kind):
            raise BadInput(f"disk {self.path}: neither a file nor a block device")
        if stat.S_ISBLK(kind) and not self.readonly:
            flags |= os.O_EXCL  # refused while it is mounted
        self.fd = os.open(named, flags)
        try:
            fcntl.flock(self.fd, (fcntl.LOCK_SH if self.readonly else fcntl.LOCK_EX) | fcntl.LOCK_NB)
        except BlockingIOError:
            from kvmkit.block.holder import holder

            how = "written by" if self.readonly else "in use by"
            raise BadInput(f"disk {self.path}: it is {how} {holder(self.fd)}; end that first") from None
        self.size = self.measure()
        if self.size == 0:
            raise BadInput(f"disk {self.path}: it is empty; make it larger, as with truncate -s 1G {self.path}")
        if self.size % SECTOR:
            raise BadInput(f"disk {self.path}: its {self.size} bytes are not a multiple of {SECTOR}: no raw disk image")
        if not raw:
            self._refuse_formats()
        self.physical = self._physical()
        self.align = SECTOR
        if direct:
            try:
                self.direct_fd = os.open(self.path, flags & ~os.O_EXCL | os.O_DIRECT)
            except OSError as error:
                if error.errno != errno.EINVAL:
                    raise
                raise BadInput(f"disk {self.path}: its file system has no direct I/O; leave `direct` out") from None
            self.align = self._alignment()

    def measure(self) -> int:
        """Its size in bytes now."""
        return os.lseek(self.fd, 0, os.SEEK_END)

    def _refuse_formats(self) -> None:
        """A guest would see the container's bytes as its disk, and its writes would damage it."""
        head = os.pread(self.fd, 8, 0)
        for magic, name in ((b"QFI\xfb", "qcow2"), (b"KDMV", "VMDK"), (b"vhdxfile", "VHDX")):
            if head.startswith(magic):
                raise BadInput(
                    f"disk {self.path}: a {name} image; make it raw: qemu-img convert -O raw {self.path} disk.raw"
                )

    def _physical(self) -> int:
        if not stat.S_ISBLK(os.fstat(self.fd).st_mode):
            return FILE_BLOCK
        size = int.from_bytes(fcntl.ioctl(self.fd, BLKPBSZGET, bytes(4)), "little")
        return size if SECTOR <= size <= 1 << 20 and not size & (size - 1) else FILE_BLOCK

    def _alignment(self) -> int:
        """The smallest that works, by trying: not every kernel tells."""
        with mmap.mmap(-1, 2 * FILE_BLOCK) as buffer, memoryview(buffer) as view:
            for align in (SECTOR, 1024, 2048):
                if self.size < 2 * align:
                    break
                with view[align : 2 * align] as part:
                    try:
                        os.preadv(self.direct_fd, [part], align)
                    except OSError as error:
                        if error.errno != errno.EINVAL:
                            raise
                    else:
                        return align
        return FILE_BLOCK

    def _explain(self, error: OSError) -> str:
        if error.errno == errno.ENOENT:
            return f"no such file; make one with truncate -s 1G {self.path}"
        if error.errno in (errno.EACCES, errno.EPERM, errno.EROFS) and not self.readonly:
            return f"can't be opened for writing ({error.strerror}); add `,ro` to only read it"
        if error.errno == errno.EBUSY:
            return "the host has it in use (mounted?)"
        return error.strerror or str(error)

    def close(self) -> None:
        for fd in (self.fd, self.direct_fd):
            if fd >= 0:
                os.close(fd)
        self.fd = self.direct_fd = -1
