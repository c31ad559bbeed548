"""The one thing a bus knows of a device: registers that are read and written."""

import cython
from cython.cimports.libc.stdint import uint64_t


@cython.cclass
class Device:
    """A device's registers on a bus. A compiled device overrides these two in C, any other in Python."""

    @cython.ccall
    def read(self, offset: uint64_t, size: cython.uint) -> uint64_t:
        """The value of `size` (1, 2, 4 or 8) bytes at `offset` from the start of its range; all ones: nothing there."""
        return 0xFFFFFFFFFFFFFFFF

    @cython.ccall
    def write(self, offset: uint64_t, size: cython.uint, value: uint64_t):
        """Take `size` bytes at `offset`. The offset is inside the range; the value is the guest's, whatever it is."""
