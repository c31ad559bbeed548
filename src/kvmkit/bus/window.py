"""An address space as a device in another one: what stands behind a PCI BAR with several things in it."""

from __future__ import annotations

from .device import Device
from .space import AddressSpace


class Window(Device):
    def __init__(self, space: AddressSpace) -> None:
        self.space = space

    def read(self, offset: int, size: int) -> int:
        return self.space.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.space.write(offset, size, value)
