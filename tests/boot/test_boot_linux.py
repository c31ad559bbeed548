"""Linux kernels in guest memory: each packing, the zero page, and memory that is too small."""

from __future__ import annotations

import gzip
import os
import struct

import pytest
from kernel_images import CODECS, LOAD, bzimage, code, elf64, payload

from kvmkit.accel.structures import Regs, Sregs
from kvmkit.boot import load
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory

MIB = 1 << 20
ZERO_PAGE = 0x7000


class Registers:
    """A vCPU as far as registers go."""

    def __init__(self):
        self.state = {"sregs": bytes(Sregs(apic_base=0xFEE00900)), "regs": bytes(Regs())}

    def get(self, name):
        return self.state[name]

    def set(self, name, data):
        self.state[name] = data


def zero_page(memory):
    return memory.read(ZERO_PAGE, 4096)


def u32(data, at):
    return struct.unpack_from("<I", data, at)[0]


@pytest.mark.parametrize("codec", CODECS)
def test_every_packing_is_unpacked_on_the_host(codec, memory, file):
    body = code()
    state = load(memory, file(bzimage(payload(codec, elf64(body)))))
    assert (state.kind, state.entry, state.note) == ("linux", LOAD, "")
    assert memory.read(LOAD, len(body)) == body
    assert memory.read(LOAD + len(body), 0x3000) == bytes(0x3000)


def test_relocations_behind_the_elf_file_do_not_matter(memory, file):
    body = code(5000)
    assert load(memory, file(bzimage(payload("gzip", elf64(body) + bytes(range(256)) * 40)))).kind == "linux"
    assert memory.read(LOAD, len(body)) == body


@pytest.mark.parametrize("codec", CODECS)
def test_a_damaged_payload_is_refused(codec, memory, file):
    packed = bytearray(payload(codec, elf64(code(50_000))))
    packed[len(packed) // 3 : -100] = bytes(len(packed) - 100 - len(packed) // 3)
    with pytest.raises(BadInput, match=f"the bzImage is damaged: its {codec} data is damaged"):
        load(memory, file(bzimage(bytes(packed))))


def test_an_unknown_packing_is_left_to_the_kernels_own_decompressor(memory, file):
    image = bzimage(b"no known packing" * 3000)
    state = load(memory, file(image))
    assert (state.kind, state.entry) == ("linux-decompressor", LOAD + 0x200)
    assert state.note
    assert memory.read(LOAD, len(image) - 1024) == image[1024:]


@pytest.mark.parametrize(
    "packed",
    [
        b"no known packing" * 8,
        payload("gzip", b"not an ELF file"),
        payload("gzip", elf64(b"\xf4", machine=183)),
        payload("gzip", elf64(b"\xf4" * 100)[:4000]),
        payload("gzip", elf64(b"\xf4", address=0x8000)),
        payload("xz", elf64(b"\xf4"))[:-4] + struct.pack("<I", 1 << 31),
        payload("zstd", elf64(b"\xf4" * 9000))[:-4] + struct.pack("<I", 5000),
        payload("bzip2", elf64(b"\xf4" * 9000))[:-4] + struct.pack("<I", 20_000_000),
    ],
)
def test_what_is_no_vmlinux_is_left_to_the_kernels_own_decompressor(packed, memory, file):
    assert load(memory, file(bzimage(packed))).kind == "linux-decompressor"


def test_the_zero_page_says_what_the_protocol_asks(file):
    memory = GuestMemory(4096 * MIB)
    initrd = b"070701" + bytes(1001)
    second = file(gzip.compress(os.urandom(77)), "second")
    load(
        memory, file(bzimage(payload("gzip", elf64(code(9000))))), initrd=[initrd, second], cmdline="a b", rsdp=0xE0000
    )
    page = zero_page(memory)
    assert page[0x1FE:0x200] == b"\x55\xaa"
    assert page[0x202:0x206] == b"HdrS"
    assert page[0x1EF] == 0
    assert page[0x210] == 0xFF
    assert page[0x211] & 1
    assert struct.unpack_from("<Q", page, 0x70)[0] == 0xE0000
    assert memory.read(u32(page, 0x228), 4) == b"a b\0"
    address, size = u32(page, 0x218), u32(page, 0x21C)
    assert memory.read(address, size) == initrd + b"\0" + second.read_bytes()
    assert address % 4096 == 0
    assert 0 <= 0x80000000 - (address + size) < 4096  # the header's limit lies below the hole
    areas = [struct.unpack_from("<QQI", page, 0x2D0 + 20 * i) for i in range(page[0x1E8])]
    ram = [(start, size) for start, size, kind in areas if kind == 1]
    assert ram == [(0, 0x9FC00), (MIB, 3072 * MIB - MIB), (4096 * MIB, 1024 * MIB)]
    assert (0xE0000, 0x20000, 2) in areas
    memory.close()


def test_the_vcpu_starts_in_long_mode(memory, file):
    vcpu = Registers()
    load(memory, file(elf64(code(9000), entry=LOAD + 0x40))).apply(vcpu)
    regs, sregs = Regs.from_buffer_copy(vcpu.state["regs"]), Sregs.from_buffer_copy(vcpu.state["sregs"])
    assert (regs.rip, regs.rsi, regs.rflags) == (LOAD + 0x40, ZERO_PAGE, 2)
    assert (sregs.cr0, sregs.efer & 0x500, sregs.cr4 & 0x20) == (0x80050033, 0x500, 0x20)
    assert (sregs.cs.selector, sregs.cs.l, sregs.cs.db, sregs.ds.selector) == (0x10, 1, 0, 0x18)
    assert sregs.apic_base == 0xFEE00900
    # The page tables map the first 4 GiB to themselves.
    (top,) = struct.unpack("<Q", memory.read(sregs.cr3, 8))
    for address in (0, LOAD, 0xFEE00000, 0xFFFFFFFF):
        (pointer,) = struct.unpack("<Q", memory.read((top & ~0xFFF) + 8 * (address >> 30), 8))
        (entry,) = struct.unpack("<Q", memory.read((pointer & ~0xFFF) + 8 * (address >> 21 & 511), 8))
        assert entry & 0x83 == 0x83
        assert entry & ~0xFFF == address & ~0x1FFFFF
    # The descriptors in the table say what the segment registers hold.
    assert sregs.gdt.limit == 6 * 8 - 1
    (code_segment,) = struct.unpack("<Q", memory.read(sregs.gdt.base + 0x10, 8))
    assert (code_segment >> 53 & 1, code_segment >> 40 & 15) == (1, 11)


def test_an_entry_point_given_as_virtual_address(memory, file):
    assert load(memory, file(elf64(code(9000), entry=0xFFFFFFFF80000000 + LOAD + 8))).entry == LOAD + 8


def test_too_little_memory_names_an_amount_that_is_enough(file):
    kernel = file(bzimage(payload("lz4", elf64(code(100_000), bss=7 * MIB)), init_size=30 * MIB))
    broken = file(bzimage(b"?" * 100, init_size=30 * MIB), "broken")
    big = b"070701" + bytes(9 * MIB)
    for path, initrd in ((kernel, []), (kernel, [big]), (broken, []), (broken, [big])):
        memory = GuestMemory(2 * MIB)
        with pytest.raises(BadInput, match=r"at least \d+ MiB") as caught:
            load(memory, path, initrd=initrd)
        assert memory.read(0, 2 * MIB) == bytes(2 * MIB)
        size = int(str(caught.value).split("at least ")[1].split()[0])
        if initrd:
            with pytest.raises(BadInput, match=r"at least \d+ MiB") as caught:
                load(GuestMemory(size * MIB), path, initrd=initrd)
            size = int(str(caught.value).split("at least ")[1].split()[0])
        load(GuestMemory(size * MIB), path, initrd=initrd)
        with pytest.raises(BadInput):
            load(GuestMemory((size - 1) * MIB), path, initrd=initrd)


@pytest.mark.parametrize(
    ("cmdline", "message"), [("x" * 2048, "2048 bytes; this kernel takes 2047"), ("a\0b", "NUL character")]
)
def test_a_command_line_that_can_not_be(cmdline, message, memory, file):
    for image in (bzimage(payload("gzip", elf64(code(9000)))), elf64(code(9000))):
        with pytest.raises(BadInput, match=message):
            load(memory, file(image), cmdline=cmdline)


def test_the_longest_command_line(memory, file):
    load(memory, file(bzimage(payload("gzip", elf64(code(9000))))), cmdline="x" * 2047)
    assert memory.read(u32(zero_page(memory), 0x228), 2048) == b"x" * 2047 + b"\0"


def test_an_initrd_that_can_not_be(memory, file, tmp_path):
    kernel = file(elf64(code(9000)))
    for initrd, message in (
        (tmp_path / "none", "can't open initrd .*none: No such file"),
        (tmp_path, "it is a directory"),
        (file(b"", "empty"), "it is empty"),
        (file(os.urandom(9000).replace(b"\x1f\x8b", b"??"), "noise"), "neither a cpio archive"),
    ):
        with pytest.raises(BadInput, match=message):
            load(memory, kernel, initrd=[initrd])
    huge = tmp_path / "huge"
    huge.write_bytes(b"070701")
    os.truncate(huge, 2100 * MIB)
    with pytest.raises(BadInput, match="larger than the kernel"):
        load(memory, kernel, initrd=[huge])


def test_debians_kernel(debian_kernel):
    memory = GuestMemory(256 * MIB)
    state = load(memory, debian_kernel, cmdline="console=ttyS0", rsdp=0xE0000)
    assert (state.kind, state.entry) == ("linux", LOAD)
    assert memory.read(LOAD, 16) != bytes(16)
    memory.close()


@pytest.mark.parametrize("left", [0.3, 0.9])
def test_a_truncated_initrd_is_refused(memory, file, tmp_path, left):
    entries = [("init", b"x" * 5000), ("etc/more", b"y" * 70_000)]
    whole = b"".join(cpio_entry(*entry) for entry in entries) + cpio_entry("TRAILER!!!", b"")
    kernel, path = file(elf64(code(9000))), tmp_path / "initrd"
    # Whole, padded, and with something packed behind it, as a distribution's with microcode is.
    for good in (whole, whole + bytes(500), bytes(512) + whole + gzip.compress(os.urandom(3000))):
        path.write_bytes(good)
        load(memory, kernel, initrd=[path])
    path.write_bytes(whole[: int(len(whole) * left)])
    with pytest.raises(BadInput, match=r"can't use initrd .*initrd: it is truncated: etc/more has \d+ of 70000 bytes"):
        load(memory, kernel, initrd=[path])
    path.write_bytes(cpio_entry(*entries[0]))
    with pytest.raises(BadInput, match="it is truncated: it has no end"):
        load(memory, kernel, initrd=[path])


def cpio_entry(name: str, content: bytes) -> bytes:
    fields = (0, 0o100644, 0, 0, 1, 0, len(content), 0, 0, 0, 0, len(name) + 1, 0)
    head = b"070701" + b"".join(b"%08X" % field for field in fields) + name.encode() + b"\0"
    return head + bytes(-len(head) % 4) + content + bytes(-len(content) % 4)
