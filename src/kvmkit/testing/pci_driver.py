"""The driver's side of a virtio device on a PCI bus, in plain Python: it finds its registers by the capabilities.

    with PciDriver(device, memory, msix=True) as driver:
        driver.start()
        assert driver.request(0, b"sent", 16) == b"the answer"

Source: virtio 1.2, 4.1.
"""

from __future__ import annotations

import os
import select
import time
from typing import TYPE_CHECKING

from kvmkit.accel import MsiRoute
from kvmkit.bus import AddressSpace, pc

from .driver import RING_ROOM, SECONDS, LocalVm, MmioDriver
from .rings import PackedRing, SplitRing

if TYPE_CHECKING:
    from kvmkit.memory import GuestMemory
    from kvmkit.virtio.device import VirtioDevice

COMMAND, DECODE = 4, 6
MESSAGE = 0xFEE00000
FIRST_VECTOR = 0x40
COMMON, NOTIFY, ISR, DEVICE, WINDOW = 1, 2, 3, 4, 5
MSIX, VENDOR = 0x11, 0x09


class PciVm(LocalVm):
    """A LocalVm with message routes and level-triggered lines. `levels`: of each line that was ever set."""

    def __init__(self) -> None:
        super().__init__()
        self.levels: dict[int, int] = {}
        self.routes: list[MsiRoute] = []

    def set_irq(self, gsi: int, level: int) -> None:
        self.levels[gsi] = level

    def set_msi_routes(self, routes: list[MsiRoute]) -> None:
        self.routes = routes

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's write."""
        bell = self._bells.get((address, 0, None))
        if bell is not None:
            os.eventfd_write(bell, 1)
        else:
            super().write(address, size, value)


class PciDriver(MmioDriver):
    """As MmioDriver, on a bus of its own. `msix`: interrupts are messages, one for each queue; else by the pin."""

    STATUS = (0x14, 1)
    OFFERED, AGREED = (0x00, 0x04), (0x08, 0x0C)

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        *,
        msix: bool = True,
        packed: bool = False,
        events: bool = True,
        features: int = 0,
        size: int = 16,
        rings: int = 0x10000,
    ) -> None:
        from kvmkit.pci import HostBridge
        from kvmkit.virtio.pci import PciTransport

        self._remember(device, memory, packed, events, features, size, rings)
        self.msix = msix
        self.vm: PciVm = PciVm()
        space: AddressSpace = self.vm.mmio
        self.bridge = HostBridge(self.vm, memory, space)  # type: ignore[arg-type]  # a part of a VM is enough
        self.pci = PciTransport(device, self.bridge)
        self.slot = self.pci.function.slot
        self.set_config(COMMAND, 2, DECODE)
        self.places: dict[int, int] = {}
        self.multiplier = 0
        self.find()

    # Configuration space.

    def config(self, offset: int, size: int) -> int:
        return self.vm.read(pc.PCI_ECAM + (self.slot << 15) + offset, size) & ((1 << 8 * size) - 1)

    def set_config(self, offset: int, size: int, value: int) -> None:
        self.vm.write(pc.PCI_ECAM + (self.slot << 15) + offset, size, value)

    def find(self) -> None:
        """Walk the capabilities, and remember where the BAR has each structure."""
        base = self.config(0x10, 4) & ~15 | self.config(0x14, 4) << 32
        at = self.config(0x34, 1)
        while at:
            kind = self.config(at, 1)
            if kind == MSIX:
                self.msix_control = at + 2
                self.table = base + (self.config(at + 4, 4) & ~7)
            elif kind == VENDOR:
                structure = self.config(at + 3, 1)
                self.places[structure] = at if structure == WINDOW else base + self.config(at + 8, 4)
                if structure == NOTIFY:
                    self.multiplier = self.config(at + 16, 4)
            at = self.config(at + 1, 1)

    # The common configuration.

    def register(self, offset: int, size: int = 4) -> int:
        return self.vm.read(self.places[COMMON] + offset, size) & ((1 << 8 * size) - 1)

    def set(self, offset: int, value: int, size: int = 4) -> None:
        self.vm.write(self.places[COMMON] + offset, size, value)

    def negotiate(self) -> int:
        agreed = self._agree()
        if self.msix:
            self._set_up_messages()
        return agreed

    def _set_up_messages(self) -> None:
        self.set_config(self.msix_control, 2, 0x8000)
        for vector in range(len(self.device.queues) + 1):
            entry = self.table + 16 * vector
            for offset, value in ((0, MESSAGE), (4, 0), (8, FIRST_VECTOR + vector), (12, 0)):
                self.vm.write(entry + offset, 4, value)
        self.set(0x10, 0, 2)
        assert self.register(0x10, 2) == 0

    def set_up(self, index: int) -> SplitRing | PackedRing:
        self.set(0x16, index, 2)
        size = min(self.register(0x18, 2), self.size)
        kind = PackedRing if self.packed else SplitRing
        ring = kind(self.memory, self.rings + RING_ROOM * index, size, event_index=self.events)
        ring.want_interrupt(True)
        self.set(0x18, size, 2)
        if self.msix:
            self.set(0x1A, index + 1, 2)
            assert self.register(0x1A, 2) == index + 1
        for offset, address in ((0x20, ring.descriptors), (0x28, ring.driver), (0x30, ring.device)):
            self.set(offset, address & 0xFFFFFFFF)
            self.set(offset + 4, address >> 32)
        self.set(0x1C, 1, 2)
        if index < len(self.queues):
            self.queues[index] = ring
        else:
            self.queues.append(ring)
        return ring

    def bell(self, index: int) -> int:
        """The address of a queue's doorbell."""
        self.set(0x16, index, 2)
        return self.places[NOTIFY] + self.register(0x1E, 2) * self.multiplier

    def ring(self, index: int) -> None:
        if self.queues[index].publish():
            self.vm.write(self.bell(index), 2, index)

    # Interrupts.

    def _messages(self) -> dict[int, int]:
        """The eventfds that stand for messages now, and which vector each sends."""
        vectors = {route.gsi: route.data - FIRST_VECTOR for route in self.vm.routes}
        return {fd: vectors[gsi] for gsi, fd in self.vm.lines.items() if gsi in vectors}

    def wait_interrupt(self, seconds: float = SECONDS) -> int:
        """Wait for one: 1 of a queue, 2 of the configuration. 0: there was none."""
        if self.msix:
            return self._wait_message(seconds)
        end = time.monotonic() + seconds
        while time.monotonic() < end:
            if any(self.vm.levels.values()):
                reasons = self.vm.read(self.places[ISR], 1) & 0xFF
                if reasons:
                    return reasons
            time.sleep(0.0005)
        return 0

    def _wait_message(self, seconds: float) -> int:
        fds = self._messages()
        poll = select.poll()
        for fd in fds:
            poll.register(fd, select.POLLIN)
        reasons = 0
        for fd, _ in poll.poll(seconds * 1000):
            os.eventfd_read(fd)
            reasons |= 1 if fds[fd] else 2
        return reasons

    def close(self) -> None:
        self.pci.close()
        self.device.close()
        self.bridge.stop()
        self.bridge.close()
