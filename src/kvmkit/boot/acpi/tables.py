"""ACPI's fixed tables: RSDP, XSDT, FADT, FACS and MADT.

Source: ACPI Specification 6.5, section 5.2.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence

from kvmkit.bus.pc import (
    ACPI_IRQ,
    GPE0,
    GPE0_BYTES,
    IOAPIC,
    LAPIC,
    PIT_IOAPIC_PIN,
    PIT_IRQ,
    PM1_CONTROL,
    PM1_EVENT,
    PM_TIMER,
    RESET_PORT,
    RESET_VALUE,
)

OEM = b"KVMKIT"
OEM_TABLE = b"KVMKITPC"
FACS_SIZE = 64
HEADER_BYTES = 36
CHECKSUM = 9
"""Where a table's header has it."""
RSDP_BYTES = 36
RSDP_XSDT = 24
FADT_POINTERS = ((36, 4), (40, 4), (140, 8))
"""(offset, bytes) of the FACS's address and both forms of the DSDT's."""

WBINVD, PROC_C1, SLEEP_BUTTON_ABSENT, RTC_WAKE_ABSENT, RESET_SUPPORTED = 1, 1 << 2, 1 << 5, 1 << 6, 1 << 10
BOOT_LEGACY_DEVICES, BOOT_8042, BOOT_NO_VGA = 1, 2, 4

BYTES, WORDS, DOUBLE_WORDS = 1, 2, 3
POLARITY_HIGH, TRIGGER_LEVEL = 1, 3 << 2


def table(signature: bytes, revision: int, body: bytes) -> bytes:
    """A system description table: 36 bytes of header, `body`, and a checksum that makes all bytes' sum zero."""
    size = HEADER_BYTES + len(body)
    header = struct.pack("<4sIBB6s8sI4sI", signature, size, revision, 0, OEM, OEM_TABLE, 1, b"KVMK", 1)
    return _summed(header + body, CHECKSUM)


def rsdp(xsdt: int) -> bytes:
    """The root pointer, revision 2, with both of its checksums."""
    pointer = bytearray(struct.pack("<8sB6sBIIQB3x", b"RSD PTR ", 0, OEM, 2, 0, 36, xsdt, 0))
    pointer[8] = -sum(pointer[:20]) & 0xFF
    return _summed(bytes(pointer), 32)


def xsdt(addresses: Sequence[int]) -> bytes:
    return table(b"XSDT", 1, struct.pack(f"<{len(addresses)}Q", *addresses))


def facs() -> bytes:
    """Firmware's side of sleeping: nothing but the lock word that ACPI wants to exist. To be 64-byte aligned."""
    return struct.pack("<4sIIIIIQB", b"FACS", FACS_SIZE, 0, 0, 0, 0, 0, 2).ljust(FACS_SIZE, b"\0")


def fadt(dsdt: int, facs: int, *, i8042: bool) -> bytes:
    """Revision 6.0, with fixed hardware: power button, PM timer (24 bits), general-purpose events, reset register.

    ACPI is on from the start: there is no SMI command port to switch it on with.
    """
    body = bytearray(276 - 36)

    def put(layout: str, offset: int, *values: int) -> None:
        struct.pack_into("<" + layout, body, offset - 36, *values)

    put("II", 36, facs, dsdt)
    put("H", 46, ACPI_IRQ)
    put("I", 56, PM1_EVENT)
    put("I", 64, PM1_CONTROL)
    put("I", 76, PM_TIMER)
    put("I", 80, GPE0)
    put("BBBBB", 88, 4, 2, 0, 4, GPE0_BYTES)
    put("HH", 96, 0xFFFF, 0xFFFF)  # no C2 and C3
    put("H", 109, BOOT_LEGACY_DEVICES | BOOT_NO_VGA | (BOOT_8042 if i8042 else 0))
    put("I", 112, WBINVD | PROC_C1 | SLEEP_BUTTON_ABSENT | RTC_WAKE_ABSENT | RESET_SUPPORTED)
    body[116 - 36 : 128 - 36] = _port(RESET_PORT, 1)
    put("B", 128, RESET_VALUE)
    put("B", 131, 0)  # minor version
    put("Q", 140, dsdt)  # the FACS has only its 32-bit address: the two forms exclude each other
    body[148 - 36 : 160 - 36] = _port(PM1_EVENT, 4, access=WORDS)
    body[172 - 36 : 184 - 36] = _port(PM1_CONTROL, 2, access=WORDS)
    body[208 - 36 : 220 - 36] = _port(PM_TIMER, 4, access=DOUBLE_WORDS)
    body[220 - 36 : 232 - 36] = _port(GPE0, GPE0_BYTES)
    return table(b"FACP", 6, bytes(body))


def madt(cpus: int) -> bytes:
    """Interrupt controllers: a LAPIC per vCPU (APIC id = index), an IOAPIC, and how its pins differ from the PIC."""
    entries = [struct.pack("<IIBBHI", LAPIC, 1, 0, 0, 0, 0)[:8]]  # flags: there is a PIC too
    for index in range(cpus):
        if index < 255:
            entries.append(struct.pack("<BBBBI", 0, 8, index, index, 1))
        else:
            entries.append(struct.pack("<BBHIII", 9, 16, 0, index, 1, index))  # x2APIC
    entries.append(struct.pack("<BBBBII", 1, 12, 0, 0, IOAPIC, 0))
    entries.append(struct.pack("<BBBBIH", 2, 10, 0, PIT_IRQ, PIT_IOAPIC_PIN, 0))
    entries.append(struct.pack("<BBBBIH", 2, 10, 0, ACPI_IRQ, ACPI_IRQ, POLARITY_HIGH | TRIGGER_LEVEL))
    entries.append(struct.pack("<BBBHB", 4, 6, 0xFF, 0, 1))  # NMI at LINT1 of every LAPIC
    if cpus > 255:
        entries.append(struct.pack("<BBHIB3x", 10, 12, 0, 0xFFFFFFFF, 1))
    return table(b"APIC", 5, b"".join(entries))


def _port(address: int, size: int, *, access: int = BYTES) -> bytes:
    """A generic address structure for ports of `size` bytes in all."""
    return struct.pack("<BBBBQ", 1, size * 8, 0, access, address)


def _summed(data: bytes, at: int) -> bytes:
    out = bytearray(data)
    out[at] = -sum(out) & 0xFF
    return bytes(out)
