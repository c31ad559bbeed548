"""Kernels made for the tests: ELF files, bzImages around them in every packing, multiboot headers."""

from __future__ import annotations

import bz2
import gzip
import lzma
import random
import shutil
import struct
import subprocess

import pytest

LOAD = 0x1000000
SETUP = 1024


def code(size: int = 300_000, seed: int = 1) -> bytes:
    """Bytes with what a compressor meets: noise, text that repeats near and far, and long runs."""
    source = random.Random(seed)
    words = [source.randbytes(source.randrange(3, 40)) for _ in range(200)]
    out = bytearray(b"\xeb\xfe")
    while len(out) < size:
        out += source.choice(words) * source.randrange(1, 4)
        if source.random() < 0.02:
            out += source.randbytes(source.randrange(1, 2000))
        if source.random() < 0.01:
            out += bytes(source.randrange(1, 9000))
        if source.random() < 0.05:
            start = source.randrange(len(out))
            out += out[start : start + 600]
    return bytes(out[:size])


def elf64(body: bytes, *, address: int = LOAD, entry: int | None = None, machine: int = 62, bss: int = 0x3000) -> bytes:
    """An executable of one segment: `body` at guest physical `address`, linked high as Linux is."""
    virtual = (0xFFFFFFFF80000000 + address) % (1 << 64)
    header = b"\x7fELF\x02\x01\x01" + bytes(9)
    header += struct.pack("<HHIQQQIHHHHHH", 2, machine, 1, entry or address, 64, 0, 0, 64, 56, 1, 0, 0, 0)
    header += struct.pack("<IIQQQQQQ", 1, 7, 4096, virtual, address, len(body), len(body) + bss, 4096)
    return header.ljust(4096, b"\0") + body


def elf32(body: bytes, *, address: int, entry: int) -> bytes:
    header = b"\x7fELF\x01\x01\x01" + bytes(9)
    header += struct.pack("<HHIIIIIHHHHHH", 2, 3, 1, entry, 52, 0, 0, 52, 32, 1, 0, 0, 0)
    header += struct.pack("<IIIIIIII", 1, 4096, address, address, len(body), len(body) + 0x1000, 7, 4096)
    return header.ljust(4096, b"\0") + body


def multiboot_header(flags: int = 3, *addresses: int) -> bytes:
    return struct.pack("<III", 0x1BADB002, flags, -(0x1BADB002 + flags) & 0xFFFFFFFF) + struct.pack(
        f"<{len(addresses)}I", *addresses
    )


def _tool(*command: str, data: bytes) -> bytes:
    if shutil.which(command[0]) is None:
        pytest.skip(f"{command[0]} is not installed")
    return subprocess.run(command, input=data, capture_output=True, check=True).stdout


def _lz4(data: bytes) -> bytes:
    import lz4.block

    out = b"\x02\x21\x4c\x18"
    for at in range(0, len(data), 8 << 20):
        block = lz4.block.compress(data[at : at + (8 << 20)], store_size=False)
        out += struct.pack("<I", len(block)) + block
    return out


def _zstd(data: bytes) -> bytes:
    import zstandard

    packer = zstandard.ZstdCompressor(level=19, write_content_size=False).compressobj()
    return packer.compress(data) + packer.flush()


def _xz(data: bytes) -> bytes:
    filters = [{"id": lzma.FILTER_X86}, {"id": lzma.FILTER_LZMA2, "dict_size": 32 << 20}]
    return lzma.compress(data, lzma.FORMAT_XZ, check=lzma.CHECK_CRC32, filters=filters)


CODECS = {
    "gzip": lambda data: gzip.compress(data),
    "bzip2": lambda data: bz2.compress(data),
    "lzma": lambda data: lzma.compress(data, lzma.FORMAT_ALONE),
    "xz": _xz,
    "lzo": lambda data: _tool("lzop", "-9", "-c", data=data),
    "lz4": _lz4,
    "zstd": _zstd,
}


def payload(codec: str, data: bytes) -> bytes:
    """`data` packed, with its length behind it where the kernel's build puts it."""
    return CODECS[codec](data) + (b"" if codec == "gzip" else struct.pack("<I", len(data)))


def bzimage(packed: bytes, *, protocol: int = 0x20F, xloadflags: int = 1, init_size: int = 0x100000) -> bytes:
    """A bzImage whose decompressor is a loop at the 64-bit entry point."""
    kernel = bytes(0x200) + b"\xeb\xfe" + bytes(14) + packed
    kernel = kernel.ljust((len(kernel) + 15) // 16 * 16, b"\0")
    setup = bytearray(SETUP)
    setup[0x1F1] = SETUP // 512 - 1
    struct.pack_into("<I", setup, 0x1F4, len(kernel) // 16)
    struct.pack_into("<H", setup, 0x1FE, 0xAA55)
    setup[0x200:0x202] = b"\xeb\x6a"
    struct.pack_into("<4sH", setup, 0x202, b"HdrS", protocol)
    setup[0x211] = 1
    struct.pack_into("<III", setup, 0x22C, 0x7FFFFFFF, 0x200000, 0x00010001)
    struct.pack_into("<H", setup, 0x236, xloadflags)
    struct.pack_into("<I", setup, 0x238, 2047)
    struct.pack_into("<II", setup, 0x248, 0x210, len(packed))
    struct.pack_into("<QI", setup, 0x258, LOAD, init_size)
    return bytes(setup) + kernel
