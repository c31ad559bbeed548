"""Ports for people who write kernels: a console of one byte's width, and an end with a status."""

from __future__ import annotations

from collections.abc import Callable

from kvmkit.bus import Device
from kvmkit.devices.sinks import Sink

PRESENT = 0xE9
"""What the debug console reads as, so that a guest can tell that there is one."""


class DebugConsole(Device):
    """Ports 0xe9 (Bochs) and 0x402 (SeaBIOS, OVMF). What the sink does not take at once is lost, and counted."""

    def __init__(self, sink: Sink) -> None:
        self.sink = sink
        self.lost = 0

    def read(self, offset: int, size: int) -> int:
        return PRESENT

    def write(self, offset: int, size: int, value: int) -> None:
        self.lost += 1 - self.sink.write(bytes((value & 0xFF,)))


class DebugExit(Device):
    """Port 0xf4: a guest that writes `v` ends the machine with status `(v << 1) | 1`, of which 8 bits reach a shell."""

    def __init__(self, ended: Callable[[int], None]) -> None:
        self.ended = ended

    def write(self, offset: int, size: int, value: int) -> None:
        self.ended((value << 1 | 1) & 0xFFFFFFFF)
