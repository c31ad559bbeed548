"""Multiboot 1 kernels: as ELF files of both widths and by the header's own addresses, and what they are told."""

from __future__ import annotations

import struct

import pytest
from kernel_images import code, elf32, elf64, multiboot_header
from test_boot_linux import Registers

from kvmkit.accel.structures import Regs, Sregs
from kvmkit.boot import load
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory

MIB = 1 << 20
BODY = multiboot_header() + code(20_000)


def information(memory, state):
    """The multiboot information structure: flags and what they stand for."""
    at = state.registers["rbx"]
    words = struct.unpack("<30I", memory.read(at, 120))
    areas = []
    start, end = words[12], words[12] + words[11]
    while start < end:
        size, base, length, kind = struct.unpack("<IQQI", memory.read(start, 24))
        areas.append((base, length, kind))
        start += size + 4
    modules = [struct.unpack("<4I", memory.read(words[6] + 16 * i, 16)) for i in range(words[5])]
    return words, areas, modules


def string(memory, at):
    return memory.read(at, 200).split(b"\0")[0]


@pytest.mark.parametrize(
    "image",
    [elf32(BODY, address=MIB, entry=MIB + 12), elf64(BODY, address=MIB, entry=MIB + 12)],
    ids=["elf32", "elf64"],
)
def test_an_elf_file_is_loaded_and_told_about_memory(image, memory, file):
    state = load(memory, file(image, "my kernel"), cmdline="one two")
    assert (state.kind, state.entry) == ("multiboot", MIB + 12)
    assert memory.read(MIB, len(BODY)) == BODY
    words, areas, modules = information(memory, state)
    assert words[0] & 0x4D == 0x4D
    assert words[1:3] == (639, 63 * 1024)
    assert string(memory, words[4]) == b"my_kernel one two"
    assert (0, 0x9FC00, 1) in areas
    assert (MIB, 63 * MIB, 1) in areas
    assert modules == []


def test_modules_lie_behind_the_kernel_on_pages_of_their_own(memory, file):
    first = file(b"anything at all", "first")
    state = load(memory, file(elf32(BODY, address=MIB, entry=MIB)), initrd=[first, b"x" * 5000, b"y"])
    _, _, modules = information(memory, state)
    assert [memory.read(start, end - start) for start, end, _, _ in modules] == [b"anything at all", b"x" * 5000, b"y"]
    assert string(memory, modules[0][2]) == str(first).encode()
    end_of_kernel = MIB + len(BODY) + 0x1000
    for start, end, _, _ in modules:
        assert start % 4096 == 0
        assert start >= end_of_kernel
        end_of_kernel = end


def test_a_kernel_in_low_memory_keeps_what_it_loaded(memory, file):
    body = multiboot_header() + code(0x98000)
    state = load(memory, file(elf32(body, address=0x4000, entry=0x4000)), initrd=[b"module"])
    assert memory.read(0x4000, len(body)) == body
    words, _, modules = information(memory, state)
    assert words[1] == 639
    assert memory.read(modules[0][0], 6) == b"module"


def test_the_headers_own_addresses(memory, file):
    lead = b"a.out header".ljust(64, b"\0")
    header = multiboot_header(0x10003, MIB + 16, MIB, MIB + 16 + 32 + 1000, MIB + 9000, MIB + 48)
    data = lead + b"before the head." + header + code(5000)
    state = load(memory, file(data))
    assert (state.kind, state.entry) == ("multiboot", MIB + 48)
    assert memory.read(MIB, 48 + 1000) == data[64 : 64 + 48 + 1000]
    assert memory.read(MIB + 48 + 1000, 100) == bytes(100)
    # Zero for the load's end: the whole file.
    header = multiboot_header(0x10003, MIB, MIB, 0, 0, MIB + 32)
    state = load(GuestMemory(4 * MIB), file(header + b"\xf4" * 100))
    assert state.entry == MIB + 32


def test_the_vcpu_starts_in_32_bit_protected_mode(memory, file):
    vcpu = Registers()
    state = load(memory, file(elf32(BODY, address=MIB, entry=MIB + 12)))
    state.apply(vcpu)
    regs, sregs = Regs.from_buffer_copy(vcpu.state["regs"]), Sregs.from_buffer_copy(vcpu.state["sregs"])
    assert (regs.rax, regs.rbx, regs.rip) == (0x2BADB002, state.registers["rbx"], MIB + 12)
    assert (sregs.cr0 & 0x80000001, sregs.efer, regs.rflags & 0x20200) == (1, 0, 0)
    for segment in (sregs.cs, sregs.ds, sregs.es, sregs.fs, sregs.gs, sregs.ss):
        assert (segment.base, segment.limit, segment.db, segment.l) == (0, 0xFFFFFFFF, 1, 0)
        (descriptor,) = struct.unpack("<Q", memory.read(sregs.gdt.base + segment.selector, 8))
        assert descriptor >> 40 & 15 == segment.type


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (elf32(multiboot_header(7) + code(100), address=MIB, entry=MIB), "video mode"),
        (elf32(multiboot_header(0x13) + code(100), address=MIB, entry=MIB), "flags 0x10"),
        (elf32(BODY, address=128 * MIB, entry=128 * MIB), r"at least 129 MiB"),
        (elf32(BODY, address=0xD0000000, entry=0xD0000000), "a PC has none"),
        (elf32(BODY, address=MIB, entry=MIB)[:9000], "truncated"),
        (elf64(BODY, address=1 << 33), "above 4 GiB"),
        (multiboot_header(0x10003, MIB, 2 * MIB, 0, 0, MIB) + b"\xf4", "contradict"),
        (multiboot_header(0x10003, MIB + 64, MIB, 0, 0, MIB) + b"\xf4", "contradict"),
        (multiboot_header(0x10003, MIB, MIB, MIB + 9000, 0, MIB) + b"\xf4", "truncated"),
        (multiboot_header(0x10003, MIB, MIB, 0, MIB + 1, MIB) + b"\xf4", "contradict"),
        (multiboot_header(0x10003, MIB, MIB, 0, 0, 5) + b"\xf4", "entry point"),
    ],
)
def test_kernels_that_can_not_be(data, message, memory, file):
    with pytest.raises(BadInput, match=message):
        load(memory, file(data))


def test_memory_too_small_for_the_modules(file):
    kernel = file(elf32(BODY, address=MIB, entry=MIB))
    with pytest.raises(BadInput, match=r"with its modules needs .* at least 4 MiB"):
        load(GuestMemory(2 * MIB), kernel, initrd=[bytes(2 * MIB)])
    load(GuestMemory(4 * MIB), kernel, initrd=[bytes(2 * MIB)])


def test_a_wrong_checksum_is_no_header(memory, file):
    damaged = bytearray(elf32(BODY, address=MIB, entry=MIB))
    damaged[4096 + 8] ^= 1
    with pytest.raises(BadInput, match="without a multiboot header"):
        load(memory, file(bytes(damaged)))
