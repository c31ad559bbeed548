"""Address spaces: which device answers at a port or a guest physical address.

Interrupt lines and doorbells are the accelerator's (`kvmkit.accel`): they must not pass through Python.
"""

from .device import Device
from .space import AddressSpace

__all__ = ["AddressSpace", "Device"]
