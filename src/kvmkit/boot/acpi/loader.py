"""ACPI tables by fw_cfg: firmware puts them where it likes, and sets addresses and checksums by a script.

Source: hw/acpi/bios-linker-loader.c of QEMU for the commands; OVMF and SeaBIOS both carry them out.
"""

from __future__ import annotations

import struct
from typing import TYPE_CHECKING

from .tables import CHECKSUM, RSDP_BYTES

if TYPE_CHECKING:
    from . import AcpiTables

TABLES_FILE, RSDP_FILE, SCRIPT_FILE = "etc/acpi/tables", "etc/acpi/rsdp", "etc/table-loader"
ALLOCATE, ADD_POINTER, ADD_CHECKSUM = 1, 2, 3
ANYWHERE, IN_F_SEGMENT = 1, 2
COMMAND_BYTES = 128
ALIGNMENT = 64
RSDP_CHECKSUMS = ((8, 20), (32, RSDP_BYTES))
"""(offset, bytes that are summed up from the start) of both."""


def files(built: AcpiTables) -> dict[str, bytes]:
    """The script and what it works on. `built` starts at address 0, so that addresses are offsets in the file."""
    root = bytearray()
    body = bytearray()
    commands = [_allocate(TABLES_FILE, ALIGNMENT, ANYWHERE), _allocate(RSDP_FILE, 16, IN_F_SEGMENT)]
    for address, blob in built.blobs:
        if address == built.rsdp:
            root += blob
        body = body.ljust(address, b"\0")
        body += blob if address != built.rsdp else bytes(len(blob))
    changed: set[int] = set()
    for address, size in built.pointers:
        in_root = address < RSDP_BYTES
        commands.append(_pointer(RSDP_FILE if in_root else TABLES_FILE, address, size))
        changed.update(start for start, blob in built.blobs if start <= address < start + len(blob))
    for start, blob in built.blobs:
        if start == built.rsdp:
            for offset, length in RSDP_CHECKSUMS:
                root[offset] = 0
                commands.append(_checksum(RSDP_FILE, offset, 0, length))
        elif start in changed:
            body[start + CHECKSUM] = 0
            commands.append(_checksum(TABLES_FILE, start + CHECKSUM, start, len(blob)))
    return {SCRIPT_FILE: b"".join(commands), TABLES_FILE: bytes(body), RSDP_FILE: bytes(root)}


def _allocate(file: str, alignment: int, zone: int) -> bytes:
    return _command("<I56sIB", ALLOCATE, file.encode(), alignment, zone)


def _pointer(file: str, offset: int, size: int) -> bytes:
    """Add the address of TABLES_FILE to a field."""
    return _command("<I56s56sIB", ADD_POINTER, file.encode(), TABLES_FILE.encode(), offset, size)


def _checksum(file: str, offset: int, start: int, length: int) -> bytes:
    return _command("<I56sIII", ADD_CHECKSUM, file.encode(), offset, start, length)


def _command(layout: str, *values: int | bytes) -> bytes:
    return struct.pack(layout, *values).ljust(COMMAND_BYTES, b"\0")
