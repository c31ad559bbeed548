"""Guest RAM. Every access by guest physical address goes through `pointer`, which checks the whole of it."""

import contextlib
import mmap
import os

import cython
from cython.cimports.kvmkit.memory.ram import ram_pointer
from cython.cimports.libc.stdint import uint8_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcpy

from kvmkit.errors import BadInput, HostError

PAGE = 4096
HUGE = 2 << 20
MADV_POPULATE_WRITE = 23  # <linux/mman.h>, since Linux 5.14; Python has no name for it
HOLE: int = 0xC0000000
"""Where RAM below 4 GiB ends: from here to HIGH_RAM are devices, firmware and the interrupt controllers."""
HIGH_RAM: int = 0x100000000


@cython.cclass
class GuestMemory:
    """`size` bytes of RAM (a multiple of 4096): [0, low), and what is more than 3 GiB from 4 GiB on.

    Host and guest share the mapping: a device writes where the guest reads. `shared` puts the bytes in a memfd
    (`fd`), so that another process can map them too. Otherwise they are anonymous (`fd` is -1) and the kernel is
    asked for huge pages: most hosts give a memfd none, and each small page costs a fault, under KVM an exit too.

    `fd`, when given, is the file to use instead, and becomes this object's; its pages have `page` bytes. `populate`
    has the kernel find all pages now. `kvmkit.memory.backing` makes these.
    """

    def __cinit__(self, size, shared=False, fd=-1, page=PAGE, populate=False):
        if size <= 0 or size % PAGE:
            raise BadInput(f"guest memory of {size} bytes is not a positive multiple of {PAGE}")
        self.size = size
        self.low = min(size, HOLE)
        self.fd = fd
        span = (size + page - 1) // page * page
        try:
            if shared and fd < 0:
                self.fd = os.memfd_create("kvmkit-ram", os.MFD_CLOEXEC)
            if self.fd >= 0:
                os.ftruncate(self.fd, span)
                self.mapping = mmap.mmap(self.fd, span, flags=mmap.MAP_SHARED)
            else:
                self.mapping = mmap.mmap(-1, size + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        except OSError as error:
            self.close()
            raise HostError(f"can't reserve {size >> 20} MiB for the guest: {error.strerror}") from error
        view: cython.uchar[:] = self.mapping
        self.base = cython.address(view[0])
        start: uintptr_t = 0
        if self.fd < 0:  # KVM maps a huge page only where guest and host addresses agree in its low bits
            start = -cython.cast(uintptr_t, self.base) % HUGE
            self.base += start
            with contextlib.suppress(OSError):  # a kernel without them
                self.mapping.madvise(mmap.MADV_HUGEPAGE, start, size)
        if populate:
            try:
                self.mapping.madvise(MADV_POPULATE_WRITE, start, span)
            except OSError as error:
                self.close()
                raise HostError(f"can't have {size >> 20} MiB at once for the guest: {error.strerror}") from error
        self.ram.base = self.base
        self.ram.size = self.size
        self.ram.low = self.low
        self.ram.written = cython.NULL
        self.ram.engine = cython.NULL
        self.ram.regions = cython.NULL
        self.ram.region_count = 0

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
