"""The driver's side of a virtio device by its virtio-mmio registers, in plain Python, without a guest.

    with MmioDriver(device, memory, packed=True) as driver:
        driver.start()
        assert driver.request(0, b"sent", 16) == b"the answer"

Source: virtio 1.2, 3.1.1 and 4.2.3.
"""

from __future__ import annotations

import os
import select
import time
from types import TracebackType
from typing import TYPE_CHECKING

from kvmkit.bus import AddressSpace
from kvmkit.testing.rings import PackedRing, Part, SplitRing

if TYPE_CHECKING:
    from kvmkit.memory import GuestMemory
    from kvmkit.virtio.device import VirtioDevice

INDIRECT_DESC, EVENT_IDX, VERSION_1, RING_PACKED, RING_RESET = 1 << 28, 1 << 29, 1 << 32, 1 << 34, 1 << 40
BASE = 0xFEB00000
RING_ROOM = 0x20000
SECONDS = 20.0
"""How long an answer may take: far more than any does."""


class LocalVm:
    """What a transport asks of an engine, for a test: doorbells on writes to `mmio`, interrupts by eventfd."""

    engine = "test"

    def __init__(self) -> None:
        self.mmio = AddressSpace("memory")
        self._bells: dict[tuple[int, int, int | None], int] = {}
        self.lines: dict[int, int] = {}

    def irqfd(self, fd: int, gsi: int, resample: int = -1) -> None:
        self.lines[gsi] = fd

    def remove_irqfd(self, fd: int, gsi: int) -> None:
        del self.lines[gsi]

    def ioeventfd(self, fd: int, address: int, size: int, *, port: bool = False, match: int | None = None) -> None:
        self._bells[address, size, match] = fd

    def remove_ioeventfd(
        self, fd: int, address: int, size: int, *, port: bool = False, match: int | None = None
    ) -> None:
        del self._bells[address, size, match]

    def write(self, address: int, size: int, value: int) -> None:
        """A guest's write."""
        for match in (value, None):
            fd = self._bells.get((address, size, match))
            if fd is not None:
                os.eventfd_write(fd, 1)
                return
        self.mmio.write(address, size, value)

    def read(self, address: int, size: int) -> int:
        return self.mmio.read(address, size)


class MmioDriver:
    """Finds `device`, negotiates and sets up its queues from guest address `rings` on; `buffers` is free after them."""

    STATUS = (0x70, 4)
    """The status register, and its bytes."""
    OFFERED, AGREED = (0x14, 0x10), (0x24, 0x20)
    """The registers that select a word of the device's and of the driver's features, and that hold it."""

    def __init__(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        *,
        packed: bool = False,
        events: bool = True,
        features: int = 0,
        size: int = 16,
        rings: int = 0x10000,
    ) -> None:
        from kvmkit.virtio.mmio import SIZE, MmioTransport

        self._remember(device, memory, packed, events, features, size, rings)
        self.vm = LocalVm()
        self.transport = MmioTransport(device, self.vm, BASE, 16)  # type: ignore[arg-type]  # a part of a VM is enough
        self.vm.mmio.add(BASE, SIZE, self.transport)

    def _remember(
        self,
        device: VirtioDevice,
        memory: GuestMemory,
        packed: bool,
        events: bool,
        features: int,
        size: int,
        rings: int,
    ) -> None:
        self.device, self.memory = device, memory
        self.packed, self.size, self.rings = packed, size, rings
        self.events = events
        self.wanted = VERSION_1 | INDIRECT_DESC | features
        self.wanted |= (RING_PACKED if packed else 0) | (EVENT_IDX if events else 0)
        self.queues: list[SplitRing | PackedRing] = []
        self.buffers = rings + RING_ROOM * len(device.queues)

    def register(self, offset: int, size: int = 4) -> int:
        return self.vm.read(BASE + offset, size) & ((1 << 8 * size) - 1)

    def set(self, offset: int, value: int, size: int = 4) -> None:
        self.vm.write(BASE + offset, size, value)

    def reset(self) -> None:
        self._set_status(0)
        assert self.register(*self.STATUS) == 0
        self.queues = []

    def _set_status(self, status: int) -> None:
        at, size = self.STATUS
        self.set(at, status, size)

    def negotiate(self) -> int:
        """Up to FEATURES_OK; the features agreed on."""
        assert (self.register(0), self.register(4)) == (0x74726976, 2)
        return self._agree()

    def _agree(self) -> int:
        self.reset()
        self._set_status(1)
        self._set_status(3)
        selector, word = self.OFFERED
        offered = 0
        for page in range(2):
            self.set(selector, page)
            offered |= self.register(word) << 32 * page
        agreed = offered & self.wanted
        selector, word = self.AGREED
        for page in range(2):
            self.set(selector, page)
            self.set(word, agreed >> 32 * page & 0xFFFFFFFF)
        self._set_status(11)
        assert self.register(*self.STATUS) & 8, "the device refuses these features"
        return agreed

    def start(self) -> int:
        """All of 3.1.1; the features agreed on."""
        agreed = self.negotiate()
        for index in range(len(self.device.queues)):
            self.set_up(index)
        self._set_status(15)
        return agreed

    def set_up(self, index: int) -> SplitRing | PackedRing:
        self.set(0x30, index)
        size = min(self.register(0x34), self.size)
        kind = PackedRing if self.packed else SplitRing
        ring = kind(self.memory, self.rings + RING_ROOM * index, size, event_index=self.events)
        ring.want_interrupt(True)
        self.set(0x38, size)
        for offset, address in ((0x80, ring.descriptors), (0x90, ring.driver), (0xA0, ring.device)):
            self.set(offset, address & 0xFFFFFFFF)
            self.set(offset + 4, address >> 32)
        self.set(0x44, 1)
        if index < len(self.queues):
            self.queues[index] = ring
        else:
            self.queues.append(ring)
        return ring

    def ring(self, index: int) -> None:
        """Publish what was added, and ring if the device wants it."""
        if self.queues[index].publish():
            self.set(0x50, index)

    def wait_interrupt(self, seconds: float = SECONDS) -> int:
        """Wait for one; the reasons, acknowledged. 0: there was none."""
        poll = select.poll()
        line = self.vm.lines[16]
        poll.register(line, select.POLLIN)
        end = time.monotonic() + seconds
        reasons = 0
        while not reasons:  # one that was on its way at a reset has none
            if not poll.poll(max(end - time.monotonic(), 0) * 1000):
                return 0
            os.eventfd_read(line)
            reasons = self.register(0x60)
        self.set(0x64, reasons)
        return reasons

    def collect(self, index: int, count: int = 1) -> list[tuple[int, int]]:
        """Wait, by interrupts, until `count` chains came back: (number, bytes written) of each."""
        found = self.queues[index].collect()
        while len(found) < count:
            self.queues[index].want_interrupt(True)
            more = self.queues[index].collect()
            if not more and not self.wait_interrupt():
                raise TimeoutError(f"{len(found)} of {count} chains came back")
            found += more + self.queues[index].collect()
        return found

    def request(self, index: int, data: bytes, room: int, *, table: bool = False) -> bytes:
        """Send one request and wait for its answer, of at most `room` bytes."""
        parts: list[Part] = []
        at = self.buffers + 0x1000
        if data:
            self.memory.write(at, data)
            parts.append((at, len(data), False))
        answer = (at + len(data) + 0xFFF) & ~0xFFF
        if room:
            parts.append((answer, room, True))
        self.queues[index].add(parts, self.buffers if table else None)
        self.ring(index)
        ((_, written),) = self.collect(index)
        return self.memory.read(answer, written) if written else b""

    def close(self) -> None:
        self.transport.close()
        self.device.close()

    def __enter__(self) -> MmioDriver:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
