"""The memory of a guest that another process runs, mapped here piece by piece."""

import mmap

import cython
from cython.cimports.kvmkit.memory.foreign import MOST_REGIONS
from cython.cimports.kvmkit.memory.ram import GuestMemory
from cython.cimports.libc.stdint import uint64_t

from kvmkit.errors import BadInput


@cython.cclass
class ForeignMemory(GuestMemory):
    """Empty until `map`, whatever `size` its base class is given. Nobody may be using it while its pieces change."""

    def __cinit__(self, size):
        self.ram.size = self.ram.low = self.size = self.low = 0
        self.ram.regions = self.table
        self.ram.region_count = 0
        self.mappings = []

    def map(self, regions) -> None:
        """Have these instead: (guest physical address, bytes, file, offset in it) of each. Raises BadInput."""
        self.ram.region_count = 0
        self.mappings = []
        if len(regions) > MOST_REGIONS:
            raise BadInput(f"{len(regions)} pieces of memory: {MOST_REGIONS} can be")
        count: cython.int = 0
        for guest, size, fd, offset in regions:
            if size <= 0 or guest + size > 1 << 64:
                raise BadInput(f"memory of {size} bytes at {guest:#x}")
            start = offset % mmap.PAGESIZE
            try:
                mapping = mmap.mmap(fd, size + start, flags=mmap.MAP_SHARED, offset=offset - start)
            except (OSError, ValueError, OverflowError) as error:
                raise BadInput(f"memory of {size} bytes at {guest:#x} can't be mapped: {error}") from None
            view: cython.uchar[:] = mapping
            self.mappings.append(mapping)
            self.table[count].guest = cython.cast(uint64_t, guest)
            self.table[count].size = cython.cast(uint64_t, size)
            self.table[count].host = cython.address(view[0]) + cython.cast(uint64_t, start)
            count += 1
        self.ram.region_count = count
