"""Guest RAM. Every access by guest physical address goes through `pointer`, which checks the whole of it."""

import mmap
import os

import cython
from cython.cimports.kvmkit.memory.ram import ram_pointer
from cython.cimports.libc.stdint import uint8_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcpy

from kvmkit.errors import BadInput, HostError

PAGE = 4096
MADV_POPULATE_WRITE = 23  # <linux/mman.h>, since Linux 5.14; Python has no name for it
HOLE: int = 0xC0000000
"""Where RAM below 4 GiB ends: from here to HIGH_RAM are devices, firmware and the interrupt controllers."""
HIGH_RAM: int = 0x100000000


@cython.cclass
class GuestMemory:
    """`size` bytes of RAM (a multiple of 4096): [0, low), and what is more than 3 GiB from 4 GiB on.

    The bytes live in a memfd (`fd`), so that another process can map them too. Host and guest share the
    mapping: a device writes where the guest reads.

    `fd`, when given, is the file to use instead, and becomes this object's; -1 stands for memory without a file.
    `page` is the size of that file's pages in bytes. `transparent` asks the kernel for transparent huge pages,
    `populate` has it find all pages now. `kvmkit.memory.backing` makes these.
    """

    def __cinit__(self, size, fd=None, page=PAGE, transparent=False, populate=False):
        if size <= 0 or size % PAGE:
            raise BadInput(f"guest memory of {size} bytes is not a positive multiple of {PAGE}")
        self.size = size
        self.low = min(size, HOLE)
        self.fd = os.memfd_create("kvmkit-ram", os.MFD_CLOEXEC) if fd is None else fd
        span = (size + page - 1) // page * page
        try:
            if self.fd >= 0:
                os.ftruncate(self.fd, span)
                self.mapping = mmap.mmap(self.fd, span, flags=mmap.MAP_SHARED)
            else:  # a page more, so that RAM can begin at a multiple of it
                self.mapping = mmap.mmap(-1, span + page, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
            if transparent:
                self.mapping.madvise(mmap.MADV_HUGEPAGE)
            if populate:
                self.mapping.madvise(MADV_POPULATE_WRITE, 0, span)
        except OSError as error:
            self.close()
            raise HostError(f"can't reserve {size >> 20} MiB for the guest: {error.strerror}") from error
        view: cython.uchar[:] = self.mapping
        first: uintptr_t = cython.cast(uintptr_t, cython.address(view[0]))
        if self.fd < 0:
            first = (first + page - 1) // page * page
        self.base = cython.cast(cython.pointer(uint8_t), first)
        self.ram.base = self.base
        self.ram.size = self.size
        self.ram.low = self.low
        self.ram.written = cython.NULL
        self.ram.engine = cython.NULL

    def regions(self) -> list:
        """(guest physical address, host address, bytes) of each stretch of RAM."""
        host = cython.cast(uintptr_t, self.base)
        found = [(0, host, self.low)]
        if self.size > self.low:
            found.append((HIGH_RAM, host + self.low, self.size - self.low))
        return found

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pointer(self, address: uint64_t, length: uint64_t) -> cython.pointer(uint8_t):
        """The host address of [address, address + length), or NULL when not all of it is one stretch of RAM."""
        return ram_pointer(cython.address(self.ram), address, length)

    def read(self, address: uint64_t, length: uint64_t) -> bytes:
        """Bytes of RAM. Raises ValueError when they are not all RAM."""
        p: cython.pointer(uint8_t) = self.pointer(address, length)
        if p == cython.NULL:
            raise ValueError(f"no guest RAM at {address:#x}+{length:#x}")
        return p[:length]

    def write(self, address: uint64_t, data) -> None:
        """Put `data` (any buffer) in RAM. Raises ValueError when it does not all fall on RAM."""
        view: cython.const[cython.uchar][:] = memoryview(data).cast("B")
        length: uint64_t = view.shape[0]
        if length == 0:
            return
        p: cython.pointer(uint8_t) = self.pointer(address, length)
        if p == cython.NULL:
            raise ValueError(f"no guest RAM at {address:#x}+{length:#x}")
        memcpy(p, cython.address(view[0]), length)

    def close(self) -> None:
        """Forget the file; the mapping goes with the last user of this object."""
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1
