"""Multiboot 1: small kernels that want nothing but a loader, entered in 32-bit protected mode without paging.

Source: the Multiboot Specification, version 0.6.96.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory

from . import elf
from .layout import MIB, PAGE, Layout, align_up
from .linux import CONVENTIONAL_END, encode_cmdline, memory_map
from .state import GDT_32, BootState

MAGIC = 0x1BADB002
LOADER_MAGIC = 0x2BADB002
SEARCH = 8192
"""The header lies wholly within the first 8 KiB of the file, 4-byte aligned."""

WANTS_ALIGNED_MODULES, WANTS_MEMORY, WANTS_VIDEO, HAS_ADDRESSES = 1, 2, 4, 1 << 16
MUST_UNDERSTAND = 0xFFFF
UNDERSTOOD = WANTS_ALIGNED_MODULES | WANTS_MEMORY

INFO_MEMORY, INFO_CMDLINE, INFO_MODULES, INFO_MEMORY_MAP, INFO_LOADER_NAME = 1, 4, 8, 0x40, 0x200
INFO = 0x90000
INFO_END = CONVENTIONAL_END
"""Where the information goes, unless the kernel is loaded there: then behind the kernel."""
CMDLINE_MAX = 0x4000


class Header(NamedTuple):
    """`offset` is its place in the file; `addresses`, if given, are header, load, load end, bss end and entry."""

    offset: int
    flags: int
    addresses: tuple[int, int, int, int, int] | None


def find(head: bytes) -> Header | None:
    """The multiboot header in the first bytes of a file; None when there is none with a right checksum."""
    end = min(len(head), SEARCH)
    at = head.find(MAGIC.to_bytes(4, "little"), 0, end)
    while at >= 0:
        if at % 4 == 0 and at + 12 <= end:
            _, flags, checksum = struct.unpack_from("<III", head, at)
            if (MAGIC + flags + checksum) & 0xFFFFFFFF == 0:
                if not flags & HAS_ADDRESSES:
                    return Header(at, flags, None)
                if at + 32 <= end:
                    return Header(at, flags, struct.unpack_from("<5I", head, at + 12))
        at = head.find(MAGIC.to_bytes(4, "little"), at + 1, end)
    return None


def load(
    memory: GuestMemory,
    path: Path,
    data: memoryview,
    header: Header,
    modules: Sequence[tuple[str, memoryview]],
    cmdline: str,
) -> BootState:
    """Put the kernel, its modules and the information structure in memory. Raises BadInput."""
    unknown = header.flags & MUST_UNDERSTAND & ~UNDERSTOOD
    if unknown:
        what = "a video mode" if unknown == WANTS_VIDEO else f"features (flags {unknown:#x})"
        raise BadInput(f"{path}: the multiboot kernel wants {what} that this loader does not offer")
    layout = Layout(memory, path)
    try:
        image = _addresses(data, header) if header.addresses else elf.parse(data)
    except elf.BadElfError as error:
        raise BadInput(f"{path}: not a usable multiboot kernel: {error}") from error
    if image.entry >> 32:
        raise BadInput(f"{path}: the multiboot kernel's entry point {image.entry:#x} is above 4 GiB")
    layout.require(0x100000)
    layout.add_segments(data, image.segments, 0, "")

    # The kernel's name comes first, as other loaders do it, and kernels count on it.
    line = encode_cmdline(f"{path.name.replace(' ', '_')} {cmdline}".rstrip(), CMDLINE_MAX)
    start = align_up(image.end, PAGE)
    if not any(part.address < INFO_END and part.address + part.size > INFO for part in image.segments):
        info = INFO
        module_start = start
    else:
        info = start
        module_start = start + align_up(_info_size(memory, line, modules), PAGE)
    placed: list[tuple[int, int]] = []
    for _, content in modules:
        layout.require(module_start + len(content), "the kernel with its modules")
        layout.add(module_start, content)
        placed.append((module_start, module_start + len(content)))
        module_start = align_up(module_start + len(content), PAGE)
    block = _information(memory, info, line, [name for name, _ in modules], placed)
    if info == INFO and len(block) > INFO_END - INFO:
        raise BadInput(f"{path}: too many modules")
    layout.add(info, block)
    layout.write()
    return BootState(
        kind="multiboot",
        entry=image.entry,
        gdt=info,
        registers={"rax": LOADER_MAGIC, "rbx": info + len(GDT_32)},
    )


def _addresses(data: memoryview, header: Header) -> elf.Elf:
    """The header's own address fields (flag 16) in place of an ELF file's."""
    assert header.addresses is not None
    header_address, load, load_end, bss_end, entry = header.addresses
    offset = header.offset - (header_address - load)
    if load > header_address or offset < 0:
        raise elf.BadElfError("the multiboot header's addresses contradict each other")
    length = load_end - load if load_end else len(data) - offset
    if length <= 0 or (bss_end and bss_end < load + length):
        raise elf.BadElfError("the multiboot header's addresses contradict each other")
    if offset + length > len(data):
        raise elf.BadElfError("the file is truncated: the multiboot header speaks of more")
    size = bss_end - load if bss_end else length
    if not load <= entry < load + size:
        raise elf.BadElfError("the entry point lies outside what is loaded")
    return elf.Elf(elf.MACHINE_386, entry, (elf.Segment(offset, length, load, size),))


def _info_size(memory: GuestMemory, line: bytes, modules: Sequence[tuple[str, memoryview]]) -> int:
    return len(_information(memory, 0, line, [name for name, _ in modules], [(0, 0)] * len(modules)))


def _information(
    memory: GuestMemory, base: int, line: bytes, names: Sequence[str], modules: Sequence[tuple[int, int]]
) -> bytes:
    """GDT, multiboot information, memory map, module list and strings, as they are to stand at `base`."""
    info = base + len(GDT_32)
    areas = b"".join(struct.pack("<IQQI", 20, *area) for area in memory_map(memory))
    areas_at = info + 120
    list_at = areas_at + len(areas)
    strings = bytearray()
    strings_at = list_at + 16 * len(modules)

    def string(text: bytes) -> int:
        at = strings_at + len(strings)
        strings.extend(text)
        return at

    entries = b"".join(
        struct.pack("<IIII", start, end, string(name.encode(errors="surrogateescape") + b"\0"), 0)
        for name, (start, end) in zip(names, modules, strict=True)
    )
    flags = INFO_MEMORY | INFO_CMDLINE | INFO_MODULES | INFO_MEMORY_MAP | INFO_LOADER_NAME
    fields = bytearray(120)
    struct.pack_into("<III", fields, 0, flags, CONVENTIONAL_END // 1024, (memory.low - MIB) // 1024)
    struct.pack_into("<III", fields, 16, string(line), len(modules), list_at)
    struct.pack_into("<II", fields, 44, len(areas), areas_at)
    struct.pack_into("<I", fields, 64, string(b"kvmkit\0"))
    return GDT_32 + bytes(fields) + areas + entries + bytes(strings)
