"""Files that are no kernels: one clear line each, whatever the bytes."""

from __future__ import annotations

import gzip
import os
import random
import struct

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from kernel_images import LOAD, bzimage, code, elf32, elf64, multiboot_header, payload

from kvmkit.boot import load
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory

MIB = 1 << 20
NEITHER = "not a bzImage, ELF or multiboot kernel"
GOOD = bzimage(payload("gzip", elf64(code(9000))))
ARM64 = bytes(0x38) + b"ARM\x64" + bytes(4000)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        (b"", f"{NEITHER}: it is empty"),
        (random.Random(3).randbytes(20_000), NEITHER),
        (b"x", NEITHER),
        (ARM64, f"{NEITHER}: it is a kernel for arm64"),
        (b"MZ" + ARM64[2:], f"{NEITHER}: it is a kernel for arm64"),
        (gzip.compress(ARM64), f"{NEITHER}: it is gzip data: unpack it first"),
        (b"070701" + bytes(100), f"{NEITHER}: it is a cpio archive"),
        (elf64(b"\xf4", machine=183), "an ELF file for arm64, not for x86-64"),
        (elf64(b"\xf4")[:40], "the ELF file is truncated"),
        (elf64(b"\xf4" * 5000)[:6000], "the ELF file is truncated"),
        (elf64(b"\xf4", entry=0x5000), "entry point lies outside"),
        (elf64(b"\xf4", address=0x7000), "would overwrite the first MiB"),
        (elf64(b"\xf4", address=0xFEE00000), "a PC has none"),
        (elf32(b"\xf4", address=MIB, entry=MIB), "32-bit ELF file without a multiboot header"),
        (bzimage(b"x" * 100, protocol=0x20B), "boot protocol 2.11"),
        (bzimage(b"x" * 100, xloadflags=0), "32-bit kernel"),
        (GOOD[:-17], "truncated: it has"),
        (GOOD[:0x240], "truncated: it has"),
        (GOOD[:0x1F4] + bytes(4) + GOOD[0x1F8:], "damaged"),
        (GOOD[:0x24C] + b"\xff\xff\xff\xff" + GOOD[0x250:], "payload ends outside"),
    ],
)
def test_one_line_says_what_is_wrong(data, message, memory, file):
    path = file(data)
    with pytest.raises(BadInput) as caught:
        load(memory, path)
    text = str(caught.value)
    assert text.startswith(str(path))
    assert message in text
    assert "\n" not in text
    assert memory.read(0, MIB) == bytes(MIB)


def test_what_can_not_be_read(memory, tmp_path):
    fifo = tmp_path / "fifo"
    os.mkfifo(fifo)
    for path, message in (
        (tmp_path / "none", "can't open kernel .*none: No such file"),
        (tmp_path, "it is a directory"),
        (fifo, "not a regular file"),
        (tmp_path / "a\0b", "null"),
    ):
        with pytest.raises(BadInput, match=message):
            load(memory, path)


@pytest.mark.skipif(os.geteuid() == 0, reason="root may read everything")
def test_a_file_without_permission(memory, file):
    path = file(GOOD)
    path.chmod(0)
    with pytest.raises(BadInput, match="Permission denied"):
        load(memory, path)


def test_a_file_too_large_to_be_a_kernel(memory, tmp_path):
    path = tmp_path / "huge"
    path.write_bytes(GOOD)
    os.truncate(path, 1 << 40)
    with pytest.raises(BadInput, match="larger than 1024 MiB"):
        load(memory, path)


KERNELS = [
    GOOD,
    bzimage(payload("lz4", elf64(code(4000)))),
    bzimage(payload("xz", elf64(code(4000)))),
    bzimage(payload("zstd", elf64(code(4000)))),
    elf64(code(9000)),
    elf32(multiboot_header() + code(4000), address=MIB, entry=MIB + 12),
    elf32(multiboot_header(0x10003, MIB, MIB, 0, 0, MIB + 40) + code(4000), address=MIB, entry=MIB + 12),
]
EDGES = (0, 1, 0xFF, 0x7FFFFFFF, 0x80000000, 0xFFFFFFFF, 0xFFFFFFFFFFFFFFFF, 0x8000000000000000, LOAD)


@given(data=st.data())
@settings(
    max_examples=400, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture, HealthCheck.too_slow]
)
def test_damaged_kernels_load_or_are_refused(data, tmp_path):
    kernel = bytearray(data.draw(st.sampled_from(KERNELS)))
    for _ in range(data.draw(st.integers(0, 3))):
        at = data.draw(st.one_of(st.integers(0, 0x70), st.integers(0x1F0, 0x270), st.integers(0, len(kernel) - 8)))
        value = data.draw(st.sampled_from(EDGES) | st.integers(0, (1 << 64) - 1))
        size = data.draw(st.sampled_from((1, 2, 4, 8)))
        kernel[at : at + size] = struct.pack("<Q", value)[:size]
    if data.draw(st.booleans()):
        del kernel[data.draw(st.integers(0, len(kernel))) :]
    path = tmp_path / "damaged"
    path.write_bytes(kernel)
    memory = GuestMemory(data.draw(st.sampled_from((4096, MIB, 18 * MIB, 64 * MIB))))
    try:
        state = load(memory, path, initrd=[b"070701"])
    except BadInput:
        assert memory.read(0, 4096) == bytes(4096)
    else:
        assert 0 <= state.entry < memory.low
    finally:
        memory.close()


@given(noise=st.binary(max_size=3000), start=st.sampled_from((b"", b"\x7fELF\x02\x01", multiboot_header(0x10003))))
@settings(max_examples=200, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_noise_loads_or_is_refused(noise, start, tmp_path):
    path = tmp_path / "noise"
    path.write_bytes(start + noise)
    memory = GuestMemory(2 * MIB)
    try:
        load(memory, path)
    except BadInput:
        pass
    finally:
        memory.close()
