"""ACPI tables for the machine: what a guest must be told about vCPUs, interrupts, power and devices without a bus."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvmkit.bus.pc import ACPI_TABLES, ACPI_TABLES_END
from kvmkit.errors import BadInput

from . import dsdt, tables
from .dsdt import MmioDevice

if TYPE_CHECKING:
    from .pci import PciHost

__all__ = ["AcpiTables", "MmioDevice", "build"]

MAX_CPUS = 4096
"""Names of processors in the DSDT have three hexadecimal digits."""


class AcpiTables(NamedTuple):
    """`rsdp` is the root pointer's guest physical address; each of `blobs` is (address, bytes) to write there.

    `pointers`: (address, bytes) of each field in them that holds an address of one of them.
    """

    rsdp: int
    blobs: list[tuple[int, bytes]]
    pointers: list[tuple[int, int]]


def build(
    *,
    cpus: int,
    serial: Sequence[tuple[int, int]],
    virtio_mmio: Sequence[MmioDevice] = (),
    keyboard: bool = False,
    i8042: bool = True,
    pci: PciHost | None = None,
    start: int = ACPI_TABLES,
    end: int = ACPI_TABLES_END,
) -> AcpiTables:
    """The tables of a machine with `cpus` vCPUs and the given (first port, interrupt) of each 16550.

    `keyboard` describes a PS/2 keyboard; `i8042` says that its controller is there, if only for its reset line; `pci`
    describes a PCI Express host bridge. Everything lies in `start`..`end`, which are multiples of 64, the root pointer
    first. Raises BadInput for what can't be described.
    """
    _check(cpus, serial, virtio_mmio)
    blobs: list[tuple[int, bytes]] = []
    at = start + 64  # the root pointer comes first: guests without a boot protocol look for it here

    def place(data: bytes) -> int:
        nonlocal at
        address = at
        blobs.append((address, data))
        at = (address + len(data) + 63) // 64 * 64
        return address

    # Revision 2: integers have 64 bits.
    dsdt_at = place(tables.table(b"DSDT", 2, dsdt.code(cpus, serial, virtio_mmio, keyboard=keyboard, pci=pci)))
    facs_at = place(tables.facs())
    fadt_at = place(tables.fadt(dsdt_at, facs_at, i8042=i8042))
    listed = [fadt_at, place(tables.madt(cpus))]
    if pci is not None:
        listed.append(place(pci.mcfg()))
    xsdt_at = place(tables.xsdt(listed))
    blobs.append((start, tables.rsdp(xsdt_at)))
    if at > end:
        raise BadInput(f"{cpus} vCPUs and {len(virtio_mmio)} devices are more than the ACPI tables have room for")
    pointers = [(start + tables.RSDP_XSDT, 8), *((fadt_at + offset, size) for offset, size in tables.FADT_POINTERS)]
    pointers += [(xsdt_at + tables.HEADER_BYTES + 8 * index, 8) for index in range(len(listed))]
    return AcpiTables(rsdp=start, blobs=sorted(blobs), pointers=pointers)


def _check(cpus: int, serial: Sequence[tuple[int, int]], virtio_mmio: Sequence[MmioDevice]) -> None:
    if not 1 <= cpus <= MAX_CPUS:
        raise BadInput(f"a machine has 1 to {MAX_CPUS} vCPUs, not {cpus}")
    if len(serial) > 9:
        raise BadInput(f"a machine has up to 9 serial ports, not {len(serial)}")
    for port, irq in serial:
        if not (0 <= port <= 0xFFF8 and 0 <= irq <= 15):
            raise BadInput(f"a serial port can't be at port {port:#x} with interrupt {irq}")
    for device in virtio_mmio:
        if device.base < 0 or device.size <= 0 or device.base + device.size > 1 << 32 or not 0 <= device.gsi < 1 << 32:
            raise BadInput(
                f"a virtio-mmio device can't be at {device.base:#x}+{device.size:#x} with interrupt {device.gsi}"
            )
    if len({device.uid for device in virtio_mmio}) != len(virtio_mmio):
        raise BadInput("two virtio-mmio devices have the same uid")
