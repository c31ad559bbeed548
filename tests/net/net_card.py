"""A driver with the few things one does with a network card, and the other end of its socket: for tests of networks."""

from __future__ import annotations

import select
import socket
import struct

from kvmkit.testing import MmioDriver
from kvmkit.virtio.net import Net

MAC = bytes.fromhex("525400123456")
OTHER = bytes.fromhex("525400abcdef")
BROADCAST = b"\xff" * 6
HEADER = 12
RECEIVE, TRANSMIT, CONTROL = 0, 1, 2


class Peer:
    """The other end of a stream socket."""

    def __init__(self, own: socket.socket) -> None:
        self.socket = own
        self._data = b""

    def send(self, *frames: bytes) -> None:
        self.socket.sendall(b"".join(struct.pack(">I", len(frame)) + frame for frame in frames))

    def receive(self, seconds: float = 20.0) -> bytes:
        """The next frame; b"": none came."""
        while len(self._data) < 4 or len(self._data) < 4 + struct.unpack_from(">I", self._data)[0]:
            if not select.select([self.socket], [], [], seconds)[0]:
                return b""
            more = self.socket.recv(1 << 16)
            if not more:
                raise EOFError
            self._data += more
        (length,) = struct.unpack_from(">I", self._data)
        frame, self._data = self._data[4 : 4 + length], self._data[4 + length :]
        return frame


class Card:
    """A driver with the few things one does with a network card."""

    def __init__(self, driver: MmioDriver, peer: Peer | None) -> None:
        self.driver, self.memory = driver, driver.memory
        self.device: Net = driver.device  # type: ignore[assignment]  # it was made with one
        self.at = driver.buffers
        self._peer = peer
        self.posted: dict[int, int] = {}
        self._next = 0

    @property
    def peer(self) -> Peer:
        assert self._peer is not None
        return self._peer

    def offer(self, *sizes: int, queue: int = RECEIVE) -> None:
        """Buffers to receive into."""
        for size in sizes:
            self._next = (self._next + 1) % 128
            address = self.at + 0x100000 + 0x11000 * self._next
            self.posted[self.driver.queues[queue].add([(address, size, True)])] = address
        self.driver.ring(queue)

    def taken(self, count: int = 1, queue: int = RECEIVE) -> list[bytes]:
        """What came into `count` buffers, each with its header."""
        return [
            self.memory.read(self.posted.pop(number), written) for number, written in self.driver.collect(queue, count)
        ]

    def send(self, frame: bytes, header: bytes = bytes(HEADER), *, queue: int = TRANSMIT, cut: int = 0) -> None:
        """Send in one descriptor, or in two parted at `cut`."""
        data = header + frame
        self.memory.write(self.at, data)
        parts = [(self.at, len(data), False)]
        if cut:
            parts = [(self.at, cut, False), (self.at + cut, len(data) - cut, False)]
        self.driver.queues[queue].add(parts)
        self.driver.ring(queue)
        assert self.driver.collect(queue, 1)[0][1] == 0

    def control(self, kind: int, number: int, data: bytes, queue: int = CONTROL) -> bool:
        return self.driver.request(queue, bytes([kind, number]) + data, 1) == b"\0"

    def wait_config(self) -> None:
        """Wait for a configuration interrupt; one of a queue's may have been on its way."""
        while not (reasons := self.driver.wait_interrupt()) & 2:
            assert reasons

    def counted(self) -> dict[str, dict[str, int]]:
        return self.device.counters()[0]


def frame(to: bytes = MAC, payload: bytes = b"x" * 50, kind: bytes = b"\x88\xb5") -> bytes:
    return to + OTHER + kind + payload
