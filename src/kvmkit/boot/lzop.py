"""The lzop file format, in which Linux wraps an LZO kernel: a header, then blocks of LZO1X with Adler-32 sums."""

from __future__ import annotations

import struct
import zlib
from collections.abc import Iterator

MAGIC = b"\x89LZO\x00\r\n\x1a\n"

ADLER_PLAIN, ADLER_PACKED = 0x01, 0x02
CRC_PLAIN, CRC_PACKED = 0x100, 0x200
EXTRA_FIELD, FILTER = 0x40, 0x800
MAX_BLOCK = 64 << 20  # the format's own limit


class TruncatedError(ValueError):
    """The data ends before its end mark."""


def decompress(data: memoryview, limit: int) -> bytes:
    """What the archive's first member holds, at most `limit` bytes. Raises ValueError when the data is damaged."""
    from .lzo import decompress as unpack_block

    reader = _Reader(data)
    blocks: list[bytes | memoryview] = []
    total = 0
    for packed, plain_size, plain_sum in _blocks(reader):
        total += plain_size
        if total > limit:
            raise ValueError("LZO data is longer than it may be")
        # A block that compression would have made longer is stored as it is.
        block = unpack_block(packed, plain_size) if len(packed) < plain_size else packed
        if plain_sum is not None and zlib.adler32(block) != plain_sum:
            raise ValueError("an LZO block's checksum is wrong")
        blocks.append(block)
    return b"".join(blocks)


def skip(data: memoryview) -> int:
    """The length of the archive's first member. TruncatedError when it is cut off, ValueError when it is damaged."""
    reader = _Reader(data)
    for _ in _blocks(reader):
        pass
    return reader.at


def _blocks(reader: _Reader) -> Iterator[tuple[memoryview, int, int | None]]:
    """Each block as it is, its length when unpacked, and the Adler-32 of that where there is one."""
    if bytes(reader.take(len(MAGIC))) != MAGIC:
        raise ValueError("not lzop data")
    flags = _header(reader)
    while plain_size := reader.number(4):
        packed_size = reader.number(4)
        if packed_size > plain_size or plain_size > MAX_BLOCK:
            raise ValueError("an LZO block has an impossible length")
        plain_sum = reader.number(4) if flags & ADLER_PLAIN else None
        reader.take(4 if flags & CRC_PLAIN else 0)
        if packed_size < plain_size:
            reader.take((4 if flags & ADLER_PACKED else 0) + (4 if flags & CRC_PACKED else 0))
        yield reader.take(packed_size), plain_size, plain_sum


def _header(reader: _Reader) -> int:
    """Skip the header. Returns its flags, which say what stands before each block."""
    version = reader.number(2)
    newer = version >= 0x0940
    reader.take(2)  # of the library
    reader.take(2 if newer else 0)  # version needed to extract
    reader.take(1)  # method: all of them decompress alike
    reader.take(1 if newer else 0)  # level
    flags = reader.number(4)
    reader.take(4 if flags & FILTER else 0)
    reader.take(8 + (4 if newer else 0))  # mode and time
    reader.take(reader.number(1))  # name
    reader.take(4)  # checksum
    if flags & EXTRA_FIELD:
        reader.take(reader.number(4))
        reader.take(4)
    return flags


class _Reader:
    def __init__(self, data: memoryview) -> None:
        self.data = data
        self.at = 0

    def take(self, count: int) -> memoryview:
        end = self.at + count
        if end > len(self.data):
            raise TruncatedError("lzop data is truncated")
        part = self.data[self.at : end]
        self.at = end
        return part

    def number(self, size: int) -> int:
        """A big-endian number of `size` bytes."""
        part = self.take(size)
        return int(struct.unpack({1: ">B", 2: ">H", 4: ">I"}[size], part)[0])
