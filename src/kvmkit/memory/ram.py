"""Guest RAM. Every access by guest physical address goes through `pointer`, which checks the whole of it."""

import contextlib
import mmap
import os

import cython
from cython.cimports.kvmkit.memory.ram import (
    MAP_FAILED,
    MAP_FIXED,
    MAP_PRIVATE,
    MAP_SHARED,
    PROT_READ,
    PROT_WRITE,
    mmap_at,
    ram_pointer,
)
from cython.cimports.libc.stdint import uint8_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcpy

from kvmkit.errors import BadInput, HostError

PAGE = 4096
HUGE = 2 << 20
SECTION = 128 << 20
MADV_POPULATE_WRITE = 23  # <linux/mman.h>, since Linux 5.14; Python has no name for it
HOLE: int = 0xC0000000
"""Where RAM below 4 GiB ends: from here to HIGH_RAM are devices, firmware and the interrupt controllers."""
HIGH_RAM: int = 0x100000000


@cython.cclass
class GuestMemory:
    """`size` bytes of RAM (a multiple of 4096): [0, low), of `below` bytes at most, and the rest from 4 GiB on.

    Host and guest share the mapping: a device writes where the guest reads. `shared` puts the bytes in a memfd
    (`fd`), so that another process can map them too. Otherwise they are anonymous (`fd` is -1) and the kernel is
    asked for huge pages: most hosts give a memfd none, and each small page costs a fault, under KVM an exit too.

    `fd`, when given, is the file to use instead, and becomes this object's; its pages have `page` bytes. `populate`
    has the kernel find all pages now. `kvmkit.memory.backing` makes these. `behind`: bytes of files that `place` will
    put behind RAM, where the guest finds them only by a device that says so.
    """

    def __cinit__(self, size, shared=False, fd=-1, page=PAGE, populate=False, behind=0, below=HOLE):
        if size <= 0 or size % PAGE:
            raise BadInput(f"guest memory of {size} bytes is not a positive multiple of {PAGE}")
        self.size = size
        self.low = min(size, below)
        self.rom = None
        self.rom_mapping = None
        self.fd = fd
        span = (size + page - 1) // page * page
        self.files = []
        self.placed = self.span = size
        if behind:
            # From 4 GiB on, or behind the RAM there, aligned as sections of Linux's memory map are.
            self.placed = max(self.low, (size - self.low + SECTION - 1) // SECTION * SECTION + self.low)
            self.span = self.placed + behind
            span = max(span, self.span)
        try:
            if shared and fd < 0:
                self.fd = os.memfd_create("kvmkit-ram", os.MFD_CLOEXEC)
            if self.fd >= 0:
                os.ftruncate(self.fd, span)
                self.mapping = mmap.mmap(self.fd, span, flags=mmap.MAP_SHARED)
            else:
                self.mapping = mmap.mmap(-1, span + HUGE, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
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
                self.mapping.madvise(MADV_POPULATE_WRITE, start, size)
            except OSError as error:
                self.close()
                raise HostError(f"can't have {size >> 20} MiB at once for the guest: {error.strerror}") from error
        self.ram.base = self.base
        self.ram.size = self.span
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

    def mapped(self) -> list:
        """As `regions`, with what stands behind RAM: what an engine is to show the guest."""
        host = cython.cast(uintptr_t, self.base)
        found = [(0, host, self.low)]
        if self.span > self.low:
            found.append((HIGH_RAM, host + self.low, self.span - self.low))
        return found

    def place(self, fd: int, size: uint64_t, private: bool) -> int:
        """Map a file of `size` bytes behind RAM: its guest physical address. `private`: what is written is lost.

        The descriptor has to stay open. Raises HostError.
        """
        if size > self.span - self.placed or size % PAGE:
            raise BadInput(f"no room was left for a file of {size} bytes")
        kind: cython.int = MAP_PRIVATE if private else MAP_SHARED
        at = self.base + self.placed
        if mmap_at(at, size, PROT_READ | PROT_WRITE, kind | MAP_FIXED, fd, 0) == MAP_FAILED:
            raise HostError(f"a file of {size} bytes can't be mapped")
        guest: uint64_t = cython.cast(uint64_t, HIGH_RAM) + self.placed - self.low
        if not private:
            self.files.append((guest, cython.cast(uintptr_t, at), size, fd))
        self.placed += size
        return guest

    def put_rom(self, data):
        """Have the guest read and run `data`, whole pages of it, at the end of 4 GiB. Returns the bytes it reads, which
        the caller may change.

        Before an engine shows the guest its memory. What the guest writes there goes to the device at that address, if
        there is one, and no device reaches it as memory.
        """
        size = len(data)
        if size <= 0 or size % PAGE or size > HIGH_RAM - HOLE:
            raise BadInput(f"{size} bytes can't be a ROM: whole pages can, up to {HIGH_RAM - HOLE >> 20} MiB")
        self.rom_mapping = mmap.mmap(-1, size, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        self.rom_mapping[:] = data
        view: cython.uchar[:] = self.rom_mapping
        self.rom = (HIGH_RAM - size, cython.cast(uintptr_t, cython.address(view[0])), size)
        return self.rom_mapping

    def shared_files(self) -> list:
        """(guest physical address, host address, bytes, file) of those that were placed and are not private."""
        return list(self.files)

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
