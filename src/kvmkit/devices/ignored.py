"""Ports that a PC has, that a guest pokes at, and where nothing needs to be: they read as ones and take every write.

They stand here so that an access to a port in no table is a surprise worth counting (`AddressSpace.unclaimed`).
"""

from __future__ import annotations

from typing import NamedTuple

from kvmkit.bus import AddressSpace, Device


class Ignored(NamedTuple):
    port: int
    size: int
    reason: str


IGNORED = (
    Ignored(0x00, 0x20, "DMA controller 1: no ISA device here uses it"),
    Ignored(0x2E, 2, "super I/O configuration: probed for watchdogs and sensors"),
    Ignored(0x4E, 2, "super I/O configuration, the other place"),
    Ignored(0x80, 1, "POST code: firmware reports progress, Linux writes it to wait a microsecond"),
    Ignored(0x81, 0x0F, "DMA page registers"),
    Ignored(0xC0, 0x20, "DMA controller 2"),
    Ignored(0xED, 1, "the other port that is written to wait"),
    Ignored(0xF0, 2, "FPU error latch of the 80387"),
    Ignored(0x170, 8, "IDE, second channel: no disk"),
    Ignored(0x1F0, 8, "IDE, first channel: no disk"),
    Ignored(0x201, 1, "game port"),
    Ignored(0x278, 8, "parallel port 2"),
    Ignored(0x376, 1, "IDE control, second channel"),
    Ignored(0x378, 8, "parallel port 1"),
    Ignored(0x3B0, 0x30, "VGA and monochrome adapter: no screen"),
    Ignored(0x3F0, 6, "floppy controller"),
    Ignored(0x3F6, 1, "IDE control, first channel"),
    Ignored(0x3F7, 1, "floppy controller, the last port"),
    Ignored(0x4D0, 2, "the PIC's edge or level registers: every ISA interrupt here is edge-triggered"),
)

NO_PCI = (
    Ignored(0xCF8, 1, "PCI configuration address: all ones says that there is no PCI"),
    Ignored(0xCFA, 2, "the rest of it; 0xcf9 is the reset port"),
    Ignored(0xCFC, 4, "PCI configuration data"),
)


def add_ignored(ports: AddressSpace, table: tuple[Ignored, ...] = IGNORED) -> None:
    """Put one device that does nothing at each. Nothing else may be there."""
    nothing = Device()
    for entry in table:
        ports.add(entry.port, entry.size, nothing)
