"""A start by firmware, as any PC's: a BIOS or UEFI finds a disk's boot loader, or is handed a kernel.

The image is a ROM at the end of 4 GiB, where the first vCPU starts. What the machine is made of it learns from
fw_cfg: RAM, processors, ACPI, the order of disks. Source: docs/specs/fw_cfg.rst of QEMU.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Sequence
from pathlib import Path

from kvmkit.accel.structures import Regs, Sregs
from kvmkit.boot import acpi
from kvmkit.boot.acpi import loader
from kvmkit.errors import BadInput
from kvmkit.memory import HIGH_RAM, GuestMemory

from .files import Source
from .state import Vcpu

MIB = 1 << 20
FOUR_GIB = 1 << 32
RESET_VECTOR = 16
"""Bytes from the image's end to its first instruction."""
LARGEST = 16 * MIB
RAM = 1


def image(path: Path, what: str, smallest: int, largest: int) -> bytes:
    """A file of firmware. Raises BadInput, in a line, for one of another size."""
    with Source(path, "firmware") as source:
        if not smallest <= source.size <= largest or source.size % 4096:
            sizes = f"{smallest >> 10} to {largest >> 10} KiB"
            raise BadInput(f"{path}: no {what} image: it has {source.size} bytes, and one has {sizes} in whole pages")
        return bytes(source.map())


def files(
    memory: GuestMemory, tables: Callable[[], acpi.AcpiTables], boot_order: Sequence[str]
) -> dict[str, bytes | Callable[[], bytes]]:
    """What any firmware reads by fw_cfg. `tables` gives ACPI's from address 0, whenever they are asked for, of the same
    size each time; `boot_order`: paths of disks, first to last."""
    areas = [(0, memory.low)]
    if memory.size > memory.low:
        areas.append((HIGH_RAM, memory.size - memory.low))
    now = loader.files(tables())
    found: dict[str, bytes | Callable[[], bytes]] = {
        **now,
        "etc/e820": b"".join(struct.pack("<QQI", *area, RAM) for area in areas),
        loader.TABLES_FILE: lambda: loader.files(tables())[loader.TABLES_FILE],
    }
    if boot_order:
        found["bootorder"] = "\n".join(boot_order).encode() + b"\0"
    return found


class FirmwareState:
    """The first vCPU at the reset vector; the others wait, as after reset. Source: Intel SDM 3A, 9.1.4."""

    kind = "firmware"

    def apply(self, vcpu: Vcpu) -> None:
        sregs = Sregs.from_buffer_copy(vcpu.get("sregs"))
        sregs.cs.selector, sregs.cs.base = 0xF000, 0xFFFF0000
        vcpu.set("sregs", bytes(sregs))
        regs = Regs.from_buffer_copy(vcpu.get("regs"))
        regs.rip = 0xFFF0
        vcpu.set("regs", bytes(regs))
