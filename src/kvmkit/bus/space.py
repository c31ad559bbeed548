"""An address space: port I/O or physical memory, as ranges with a device behind each."""

import cython
from cython.cimports.kvmkit.bus.device import Device
from cython.cimports.libc.stdint import uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy, memmove

from kvmkit.errors import BadInput


@cython.cclass
class AddressSpace:
    """Ranges of addresses and the device that answers in each. They may change while the guest runs (PCI's do).

    Every user of it holds the GIL. A new table is complete before it takes the old one's place, and a device that is
    taken away may still be in an access that began before.

    `unclaimed` counts accesses that no device answered: they read as all ones and writes vanish, as on a PC.
    """

    def __cinit__(self, name: str):
        self.name = name
        self.ranges = cython.NULL
        self.count = 0
        self.last = 0
        self.devices = []
        self.unclaimed = 0

    def __dealloc__(self):
        free(self.ranges)

    def add(self, base: uint64_t, size: uint64_t, device: Device) -> None:
        """Put `device` at [base, base + size). Raises BadInput when that overlaps another device."""
        if size == 0 or base + size - 1 < base:
            raise BadInput(f"{self.name}: a range of {size} bytes at {base:#x} can't be")
        i: cython.int
        position: cython.int = 0
        for i in range(self.count):
            r = cython.address(self.ranges[i])
            if base <= r.base + r.size - 1 and r.base <= base + size - 1:
                raise BadInput(f"{self.name}: {base:#x}+{size:#x} overlaps {r.base:#x}+{r.size:#x}")
            if r.base < base:
                position = i + 1
        # A place that `remove` left is used again: a guest that moves a device for ever must not fill memory.
        place: cython.int = 0
        while place < len(self.devices) and self.devices[place] is not None:
            place += 1
        if place < len(self.devices):
            self.devices[place] = device
        else:
            self.devices.append(device)
        grown: cython.pointer(Range) = cython.cast(
            cython.pointer(Range), malloc((self.count + 1) * cython.sizeof(Range))
        )
        if grown == cython.NULL:
            raise MemoryError
        memcpy(grown, self.ranges, position * cython.sizeof(Range))
        grown[position].base = base
        grown[position].size = size
        grown[position].device = place
        memcpy(
            cython.address(grown[position + 1]),
            cython.address(self.ranges[position]),
            (self.count - position) * cython.sizeof(Range),
        )
        free(self.ranges)
        self.ranges = grown
        self.count += 1

    def remove(self, base: uint64_t) -> None:
        """Take away the range that begins at `base`. Raises BadInput when none does."""
        i: cython.int
        for i in range(self.count):
            if self.ranges[i].base == base:
                break
        else:
            raise BadInput(f"{self.name}: no device begins at {base:#x}")
        gone: cython.int = self.ranges[i].device
        memmove(
            cython.address(self.ranges[i]),
            cython.address(self.ranges[i + 1]),
            (self.count - 1 - i) * cython.sizeof(Range),
        )
        self.count -= 1
        self.last = 0
        self.devices[gone] = None

    def free_at(self, base: uint64_t, size: uint64_t) -> bool:
        """Whether [base, base + size) is a range that can be added."""
        if size == 0 or base + size - 1 < base:
            return False
        i: cython.int
        for i in range(self.count):
            r = cython.address(self.ranges[i])
            if base <= r.base + r.size - 1 and r.base <= base + size - 1:
                return False
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def find(self, address: uint64_t, size: cython.uint) -> cython.int:
        """The index of the range that holds all of [address, address + size), or -1."""
        low: cython.int = 0
        high: cython.int = self.count
        middle: cython.int = self.last  # accesses come in runs: the range of the last one first
        while low < high:
            r = cython.address(self.ranges[middle])
            if address < r.base:
                high = middle
            elif address - r.base >= r.size:
                low = middle + 1
            else:
                if r.size - (address - r.base) < size:
                    return -1
                self.last = middle
                return middle
            middle = (low + high) // 2
        return -1

    @cython.ccall
    def read(self, address: uint64_t, size: cython.uint) -> uint64_t:
        i: cython.int = self.find(address, size)
        if i < 0:
            self.unclaimed += 1
            return 0xFFFFFFFFFFFFFFFF
        device: Device = cython.cast(Device, self.devices[self.ranges[i].device])
        return device.read(address - self.ranges[i].base, size)

    @cython.ccall
    def write(self, address: uint64_t, size: cython.uint, value: uint64_t):
        i: cython.int = self.find(address, size)
        if i < 0:
            self.unclaimed += 1
            return
        device: Device = cython.cast(Device, self.devices[self.ranges[i].device])
        device.write(address - self.ranges[i].base, size, value)

    def describe(self) -> list:
        """(base, size, device) of each range, in address order."""
        i: cython.int
        return [
            (self.ranges[i].base, self.ranges[i].size, self.devices[self.ranges[i].device])
            for i in range(self.count)
            if i < self.count
        ]
