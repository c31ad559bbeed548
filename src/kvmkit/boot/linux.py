"""The Linux 64-bit boot protocol: zero page, memory map, command line, initrd, page tables and GDT.

Low memory while the kernel starts; it takes what it needs out of here before it uses the memory itself:
    0x00500  GDT                0x09000  page tables: the first 4 GiB, one to one, in 2 MiB pages
    0x07000  zero page          0x20000  command line
    0x08ff0  stack

Source: Documentation/arch/x86/boot.rst ("64-bit Boot Protocol") and zero-page.rst of Linux.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from pathlib import Path

from kvmkit.bus.pc import ACPI_TABLES, ACPI_TABLES_END
from kvmkit.errors import BadInput
from kvmkit.memory import HOLE, GuestMemory

from .bzimage import HEADER, BzImage
from .layout import MIB, PAGE, Layout, align_up
from .state import GDT_64

GDT = 0x500
ZERO_PAGE = 0x7000
STACK = 0x8FF0
PAGE_TABLES = 0x9000
CMDLINE = 0x20000
CMDLINE_MAX = 0x10000
"""Bytes set aside for the command line and its final zero; Linux takes 2048."""
LOWEST_KERNEL = 0x100000

CONVENTIONAL_END = 0x9FC00
"""Where RAM below 640 KiB ends: PC firmware keeps its data area from here on."""
RAM, RESERVED = 1, 2

LOADED_HIGH = 1
LOADER_UNKNOWN = 0xFF

BARE_HEADER = bytearray(0x70)
"""The setup header for a vmlinux that came without one: boot protocol 2.12, loaded high, and nothing else."""
struct.pack_into("<H", BARE_HEADER, 0x1FE - HEADER, 0xAA55)
struct.pack_into("<4sH", BARE_HEADER, 0x202 - HEADER, b"HdrS", 0x020C)
struct.pack_into("<I", BARE_HEADER, 0x230 - HEADER, 0x1000000)
BARE_CMDLINE = 2047
BARE_INITRD_MAX = 0x7FFFFFFF


def memory_map(memory: GuestMemory) -> list[tuple[int, int, int]]:
    """The e820 map: (guest physical address, bytes, type)."""
    found = [
        (0, CONVENTIONAL_END, RAM),
        (CONVENTIONAL_END, 0xA0000 - CONVENTIONAL_END, RESERVED),
        (ACPI_TABLES, ACPI_TABLES_END - ACPI_TABLES, RESERVED),
    ]
    for address, _, size in memory.regions():
        start = max(address, LOWEST_KERNEL)
        if address + size > start:
            found.append((start, address + size - start, RAM))
    return found


def encode_cmdline(cmdline: str, limit: int) -> bytes:
    """The command line with its final zero. Raises BadInput when it is longer than `limit` bytes (zero not counted)."""
    limit = min(limit, CMDLINE_MAX - 1)
    data = cmdline.encode(errors="surrogateescape")
    if b"\0" in data:
        raise BadInput("the kernel's command line has a NUL character in it")
    if len(data) > limit:
        raise BadInput(f"the kernel's command line has {len(data)} bytes; this kernel takes {limit}")
    return data + b"\0"


def place_initrd(
    layout: Layout, parts: Sequence[tuple[str, memoryview]], kernel_end: int, addr_max: int
) -> tuple[int, int]:
    """Put the initrds at the top of low RAM, each from a multiple of 4 on. Returns (address, bytes) of all of them."""
    if not parts:
        return 0, 0
    offsets: list[int] = []
    size = 0
    for _, data in parts:
        size = align_up(size, 4)
        offsets.append(size)
        size += len(data)
    lowest = align_up(kernel_end, PAGE)
    top = min(addr_max + 1, HOLE, layout.memory.low)
    address = (top - size) // PAGE * PAGE
    if address < lowest:
        need = align_up(lowest + align_up(size, PAGE), MIB)
        if need > min(addr_max + 1, HOLE):
            raise BadInput(f"the initrd of {size / MIB:.1f} MiB is larger than the kernel {layout.path} can take")
        raise BadInput(
            f"the kernel and its initrd of {size / MIB:.1f} MiB do not fit: give the machine at least "
            f"{need // MIB} MiB (it has {layout.memory.size / MIB:g})"
        )
    for offset, (_, data) in zip(offsets, parts, strict=True):
        layout.add(address + offset, data)
    return address, size


def zero_page(
    memory: GuestMemory, image: BzImage | None, *, cmdline: bytes, initrd: tuple[int, int], rsdp: int, code32_start: int
) -> bytes:
    """struct boot_params, 4096 bytes. `cmdline` stands at CMDLINE, with its final zero."""
    page = bytearray(PAGE)
    header = bytes(BARE_HEADER) if image is None else image.header
    page[HEADER : HEADER + len(header)] = header
    struct.pack_into("<Q", page, 0x070, rsdp)
    memory_areas = memory_map(memory)
    page[0x1E8] = len(memory_areas)
    for i, area in enumerate(memory_areas):
        struct.pack_into("<QQI", page, 0x2D0 + 20 * i, *area)
    struct.pack_into("<H", page, 0x1FA, 0xFFFF)  # vid_mode: normal
    page[0x210] = LOADER_UNKNOWN
    page[0x211] |= LOADED_HIGH
    struct.pack_into("<I", page, 0x214, code32_start)
    struct.pack_into("<II", page, 0x218, *initrd)
    struct.pack_into("<I", page, 0x228, CMDLINE)
    struct.pack_into("<I", page, 0x238, len(cmdline) - 1 if image is None else image.cmdline_size)
    struct.pack_into("<Q", page, 0x250, 0)  # setup_data: a list of ours only
    return bytes(page)


def page_tables() -> bytes:
    """Tables for CR3 = PAGE_TABLES that map the first 4 GiB to themselves: six pages."""
    directories = range(PAGE_TABLES + 2 * PAGE, PAGE_TABLES + 6 * PAGE, PAGE)
    top = struct.pack("<Q", (PAGE_TABLES + PAGE) | 3).ljust(PAGE, b"\0")
    pointers = struct.pack("<4Q", *(directory | 3 for directory in directories)).ljust(PAGE, b"\0")
    # Present, writable, 2 MiB.
    return top + pointers + struct.pack("<2048Q", *range(0x83, 4 << 30, 2 << 20))


def add_start(layout: Layout, page: bytes, cmdline: bytes) -> None:
    """What every 64-bit start needs in low memory."""
    layout.require(LOWEST_KERNEL)
    layout.add(GDT, GDT_64)
    layout.add(ZERO_PAGE, page)
    layout.add(PAGE_TABLES, page_tables())
    layout.add(CMDLINE, cmdline)


def decompressor_address(image: BzImage, path: Path) -> int:
    """Where the bzImage's own decompressor is to run: where the kernel prefers to be, at 1 MiB or above."""
    address = image.pref_address
    if not LOWEST_KERNEL <= address < HOLE:
        raise BadInput(f"{path}: the bzImage is damaged: it wants to be loaded at {address:#x}")
    return address
