"""A guest's side of vsock, in plain Python: packets by a mock driver. Source: virtio 1.2, 5.10.6."""

from __future__ import annotations

import struct
import time
from typing import NamedTuple

from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver
from kvmkit.virtio.device import VirtioDevice

REQUEST, RESPONSE, RST, SHUTDOWN, RW, CREDIT_UPDATE, CREDIT_REQUEST = range(1, 8)
HEADER = struct.Struct("<QQIIIHHIII")
CID = 7
ROOM = 4096
BUFFERS = 8


class Packet(NamedTuple):
    source: int
    target: int
    source_port: int
    target_port: int
    length: int
    type: int
    op: int
    flags: int
    room: int
    taken: int
    data: bytes = b""


class Guest:
    """Receive buffers are there, and are given back as packets are read, unless `feeding` is False."""

    def __init__(self, device: VirtioDevice, memory: GuestMemory, *, packed: bool = False) -> None:
        self.memory = memory
        self.driver = MmioDriver(device, memory, packed=packed, size=64)
        self.driver.start()
        self.feeding = True
        self._places: dict[int, int] = {}
        self._came: list[Packet] = []
        self._base = self.driver.buffers
        for slot in range(BUFFERS):
            self._offer(slot)
        self.driver.ring(0)

    def _offer(self, slot: int) -> None:
        at = self._base + slot * 2 * ROOM
        self._places[self.driver.queues[0].add([(at, ROOM, True)])] = slot

    def send(
        self, op: int, source_port: int, target_port: int, data: bytes = b"", *, room: int = 1 << 16, taken: int = 0,
        flags: int = 0, source: int = CID, target: int = 2, kind: int = 1, length: int | None = None,
    ) -> None:  # fmt: skip
        length = len(data) if length is None else length
        header = HEADER.pack(source, target, source_port, target_port, length, kind, op, flags, room, taken)
        self.raw(header + data)

    def raw(self, data: bytes) -> None:
        at = self._base + BUFFERS * 2 * ROOM
        self.memory.write(at, data)
        self.driver.queues[1].add([(at, len(data), False)])
        self.driver.ring(1)
        self.driver.collect(1)

    def look(self) -> None:
        done = [(self._places.pop(number), written) for number, written in self.driver.queues[0].collect()]
        for slot, written in done:
            text = self.memory.read(self._base + slot * 2 * ROOM, written)
            fields = HEADER.unpack(text[:44])
            assert written == 44 + fields[4], "the bytes written are the header's and the data's"
            self._came.append(Packet(*fields, text[44:]))
            if self.feeding:
                self._offer(slot)
        if self.feeding:
            self.driver.ring(0)

    def feed(self) -> None:
        """Give all receive buffers back."""
        self.feeding = True
        for slot in set(range(BUFFERS)) - set(self._places.values()):
            self._offer(slot)
        self.driver.ring(0)

    def packet(self, seconds: float = 20.0) -> Packet:
        """The next packet."""
        end = time.monotonic() + seconds
        self.look()
        while not self._came:
            assert time.monotonic() < end, "no packet came"
            self.driver.wait_interrupt(0.02)
            self.look()
        return self._came.pop(0)

    def quiet(self, seconds: float = 0.05) -> bool:
        """Nothing comes."""
        self.driver.wait_interrupt(seconds)
        self.look()
        return not self._came
