"""A start by firmware: SeaBIOS, which finds a disk's boot loader as any PC's BIOS does.

The image lies in RAM up to 1 MiB, where it may write to itself, and read-only at the end of 4 GiB, from where it
renews itself at a reset. What the machine is made of it learns from fw_cfg: RAM, processors, ACPI, the order of disks.

Source: docs of SeaBIOS ("Memory model", "Runtime config"); docs/specs/fw_cfg.rst and hw/acpi/bios-linker-loader.c of
QEMU for the loader's commands.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Sequence
from pathlib import Path

from kvmkit.accel.structures import Regs, Sregs
from kvmkit.bus import Device
from kvmkit.errors import BadInput, HostError
from kvmkit.memory import HIGH_RAM, HOLE, GuestMemory
from kvmkit.packages import how
from kvmkit.paths import SEABIOS

from .files import Source
from .state import Vcpu

MIB = 1 << 20
FOUR_GIB = 1 << 32
SMALLEST, LARGEST = 64 << 10, 256 << 10
LARGEST_ROM = 64 << 20
RESET_VECTOR = 16
"""Bytes from the image's end to its first instruction."""
FAR_JUMP, NEAR_JUMP = 0xEA, 0xE9
LEAST_MEMORY = 4 * MIB
TABLES_SIZE = 128 << 10
"""At the top of low RAM, for ACPI's tables: the firmware has the place where they otherwise are."""
RAM, RESERVED = 1, 2

NAME = "bios"

ALLOCATE, IN_F_SEGMENT = 1, 2
RSDP_FILE = "etc/acpi/rsdp"
RSDP_BYTES = 36
CONSOLE_PORT = 0x3F8
NEVER = 0xFFFFFFFF


def find() -> str:
    """The path of SeaBIOS. Raises HostError, with what to install, when there is none."""
    for path in SEABIOS:
        if os.path.exists(path):
            return path
    raise HostError(f"no SeaBIOS here, to start from a disk with: {how('seabios')}, or name an image")


def read(name: str) -> bytes:
    """The image `name`, a path or NAME. Raises BadInput, in a line, for what is none."""
    if name == "uefi":
        raise BadInput("--firmware uefi: this machine can't start UEFI yet; the nearest is --firmware bios")
    path = Path(find() if name == NAME else name)
    with Source(path, "firmware") as source:
        if not SMALLEST <= source.size <= LARGEST:
            what = "UEFI, as it may be, can't be started yet; " if LARGEST < source.size <= LARGEST_ROM else ""
            raise BadInput(f"{path}: no BIOS image: {what}one has 64 to 256 KiB, such as SeaBIOS ({SEABIOS[0]})")
        data = bytes(source.map())
    if len(data) % SMALLEST or data[-RESET_VECTOR] not in (FAR_JUMP, NEAR_JUMP):
        raise BadInput(f"{path}: no BIOS image: it does not end in a reset vector")
    return data


class Rom(Device):
    """Bytes that are only read."""

    def __init__(self, data: bytes) -> None:
        self.data = data

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self.data[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        pass


def tables_at(memory: GuestMemory) -> int:
    """Where ACPI's tables go. Raises BadInput when there is too little RAM for firmware."""
    if memory.low < LEAST_MEMORY:
        raise BadInput(f"a start by firmware needs {LEAST_MEMORY // MIB} MiB of RAM (it has {memory.size / MIB:g})")
    return int(memory.low) - TABLES_SIZE


def files(memory: GuestMemory, rsdp: bytes, boot_order: Sequence[str]) -> dict[str, bytes]:
    """What SeaBIOS reads by fw_cfg. `rsdp` points at tables in place; `boot_order`: paths of disks, first to last."""
    low = tables_at(memory)
    areas = [(0, low, RAM), (low, TABLES_SIZE, RESERVED)]
    if memory.size > memory.low:
        areas.append((HIGH_RAM, memory.size - memory.low, RAM))
    loader = struct.pack("<I56sIB63x", ALLOCATE, RSDP_FILE.encode(), 16, IN_F_SEGMENT)
    found = {
        "etc/e820": b"".join(struct.pack("<QQI", *area) for area in areas),
        "etc/table-loader": loader,
        RSDP_FILE: rsdp,
        "etc/sercon-port": CONSOLE_PORT.to_bytes(2, "little"),  # there is no screen: its text goes to the serial port
        "etc/boot-fail-wait": NEVER.to_bytes(4, "little"),  # before it tries again; it has said why by then
    }
    if boot_order:
        found["bootorder"] = "\n".join(boot_order).encode() + b"\0"
    return found


def load(memory: GuestMemory, image: bytes) -> FirmwareState:
    """Put the image below 1 MiB."""
    memory.write(MIB - len(image), image)
    return FirmwareState()


class FirmwareState:
    """The first vCPU at the reset vector, in the copy below 1 MiB; the others wait, as after reset."""

    kind = "firmware"

    def apply(self, vcpu: Vcpu) -> None:
        sregs = Sregs.from_buffer_copy(vcpu.get("sregs"))
        sregs.cs.selector, sregs.cs.base = 0xF000, 0xF0000
        vcpu.set("sregs", bytes(sregs))
        regs = Regs.from_buffer_copy(vcpu.get("regs"))
        regs.rip = 0xFFF0
        vcpu.set("regs", bytes(regs))


assert HOLE <= FOUR_GIB - LARGEST
