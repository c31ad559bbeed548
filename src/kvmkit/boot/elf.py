"""ELF files as kernels: the segments to load and the entry point, each checked against the file.

Source: System V ABI, "Object Files" and "Program Loading"; the x86-64 and Intel386 supplements.
"""

from __future__ import annotations

import struct
from typing import NamedTuple

from .identify import elf_machine

MAGIC = b"\x7fELF"
MACHINE_386 = 3
MACHINE_X86_64 = 62
ET_EXEC = 2
PT_LOAD = 1
MAX_SEGMENTS = 128
"""A kernel has a handful; a file that claims thousands is no kernel."""


class BadElfError(Exception):
    """Why the file can't be loaded, in words that go behind its name and a colon."""


class Segment(NamedTuple):
    """`file_size` bytes from `offset` of the file belong at guest physical `address`; up to `size` come zeros."""

    offset: int
    file_size: int
    address: int
    size: int


class Elf(NamedTuple):
    """`entry` is a guest physical address inside one of the segments."""

    machine: int
    entry: int
    segments: tuple[Segment, ...]

    @property
    def start(self) -> int:
        return min(segment.address for segment in self.segments)

    @property
    def end(self) -> int:
        """The first guest physical address behind all segments."""
        return max(segment.address + segment.size for segment in self.segments)


def parse(data: memoryview) -> Elf:
    """Read the headers of an executable for 32-bit x86 or x86-64. Raises BadElfError."""
    if len(data) < 20 or data[:4] != MAGIC:
        raise BadElfError("not an ELF file")
    wide, order = data[4], data[5]
    if wide not in (1, 2) or order not in (1, 2):
        raise BadElfError("the ELF header is damaged")
    (machine,) = struct.unpack_from("<H" if order == 1 else ">H", data, 18)
    if order != 1 or machine not in (MACHINE_386, MACHINE_X86_64):
        raise BadElfError(f"an ELF file for {elf_machine(machine)}, not for x86-64")
    if (wide == 2) != (machine == MACHINE_X86_64):
        raise BadElfError(f"an ELF file for {elf_machine(machine)} in a form that its processor does not use")
    try:
        return _parse_64(data) if wide == 2 else _parse_32(data)
    except struct.error as error:
        raise BadElfError("the ELF file is truncated") from error


def _parse_64(data: memoryview) -> Elf:
    kind, machine, _, entry, table = struct.unpack_from("<HHIQQ", data, 16)
    entry_size, count = struct.unpack_from("<HH", data, 54)
    loads: list[tuple[int, Segment]] = []
    for at in _table(data, kind, table, entry_size, count, 56):
        type_, _, offset, virtual, physical, file_size, size, _ = struct.unpack_from("<IIQQQQQQ", data, at)
        if type_ == PT_LOAD:
            loads.append((virtual, Segment(offset, file_size, physical, size)))
    return _checked(data, machine, entry, loads, 1 << 64)


def _parse_32(data: memoryview) -> Elf:
    kind, machine, _, entry, table = struct.unpack_from("<HHIII", data, 16)
    entry_size, count = struct.unpack_from("<HH", data, 42)
    loads: list[tuple[int, Segment]] = []
    for at in _table(data, kind, table, entry_size, count, 32):
        type_, offset, virtual, physical, file_size, size, _, _ = struct.unpack_from("<IIIIIIII", data, at)
        if type_ == PT_LOAD:
            loads.append((virtual, Segment(offset, file_size, physical, size)))
    return _checked(data, machine, entry, loads, 1 << 32)


def _table(data: memoryview, kind: int, table: int, entry_size: int, count: int, least: int) -> range:
    """Where each program header stands in the file."""
    if kind != ET_EXEC:
        raise BadElfError("an ELF object, library or position-independent program, not a kernel")
    if not count:
        raise BadElfError("the ELF file has no program headers, so nothing to load")
    if count > MAX_SEGMENTS or entry_size < least:
        raise BadElfError("the ELF file's program headers are damaged")
    if table + count * entry_size > len(data):
        raise BadElfError("the ELF file is truncated: its program headers lie behind its end")
    return range(table, table + count * entry_size, entry_size)


def _checked(data: memoryview, machine: int, entry: int, loads: list[tuple[int, Segment]], top: int) -> Elf:
    segments: list[Segment] = []
    physical_entry: int | None = None
    for virtual, segment in loads:
        if segment.file_size > segment.size:
            raise BadElfError("the ELF file is damaged: a segment is longer in the file than in memory")
        if segment.offset + segment.file_size > len(data):
            raise BadElfError("the ELF file is truncated: a segment lies behind its end")
        if segment.address + segment.size > top:
            raise BadElfError("the ELF file is damaged: a segment wraps around the address space")
        if not segment.size:
            continue
        segments.append(segment)
        if segment.address <= entry < segment.address + segment.size:
            physical_entry = entry
        elif physical_entry is None and virtual <= entry < virtual + segment.size:
            physical_entry = entry - virtual + segment.address
    if not segments:
        raise BadElfError("the ELF file has no segments to load")
    if physical_entry is None:
        raise BadElfError("the ELF file's entry point lies outside its segments")
    return Elf(machine, physical_entry, tuple(segments))
