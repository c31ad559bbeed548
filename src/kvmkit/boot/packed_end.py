"""Whether compressed data has its end: a truncated file lacks it.

What ends in a mark with a checksum, or is made of blocks that tell their length, is not unpacked for this. The rest
is, and what comes out is thrown away.
"""

from __future__ import annotations

import zlib
from collections.abc import Callable
from typing import Protocol

LARGEST = 512 << 20
"""Bytes of a file that are unpacked for this at most, some two seconds' worth: a few KiB may claim to be more than any
RAM."""
LARGEST_LZ4 = (8 << 20) + (8 << 20) // 255 + 16
"""What a block of 8 MiB may be packed to."""
_CHUNK = 1 << 20


class TruncatedError(Exception):
    """The data ends before its end mark."""


class DamagedError(Exception):
    """It can't be unpacked; the text says why."""


class UnknownError(Exception):
    """Its end is not known: impossible lengths, more than the budget unpacked, or no format that Linux unpacks."""


class Budget:
    """`left`: bytes that may still be unpacked, of all the streams of one file together."""

    def __init__(self) -> None:
        self.left = LARGEST


def skip(data: memoryview, budget: Budget | None = None) -> int:
    """The length of the compressed stream at the start of `data`, or more where all of `data` ends as it should.

    `budget`: the file's, which goes down by what is unpacked. Raises TruncatedError, DamagedError and UnknownError.
    """
    for magic, skipper in _SKIPPERS:
        if data[: len(magic)] == magic:
            return skipper(data, Budget() if budget is None else budget)
    raise UnknownError


class _Unpacker(Protocol):
    """What zlib's, bz2's and lzma's have in common."""

    @property
    def eof(self) -> bool: ...

    @property
    def unused_data(self) -> bytes: ...

    def decompress(self, data: bytes, max_length: int, /) -> bytes: ...


def _unpacked(data: memoryview, budget: Budget, unpacker: _Unpacker) -> int:
    at = 0
    given = b""
    while not unpacker.eof:
        # zlib's gives back what it has no room for; the others keep it.
        if not given and getattr(unpacker, "needs_input", True):
            if at >= len(data):
                raise TruncatedError
            given = bytes(data[at : at + _CHUNK])
            at += len(given)
        try:
            budget.left -= len(unpacker.decompress(given, _CHUNK))
        except (zlib.error, OSError, ValueError) as error:  # OSError and ValueError are bz2's
            raise DamagedError(str(error)) from error
        given = getattr(unpacker, "unconsumed_tail", b"")
        if budget.left < 0:
            raise UnknownError
    return at - len(unpacker.unused_data)


def _gzip(data: memoryview, budget: Budget) -> int:
    """RFC 1952: its end is a checksum of what it unpacks to, so that nothing less than unpacking tells."""
    return _unpacked(data, budget, zlib.decompressobj(wbits=31))


def _bzip2(data: memoryview, budget: Budget) -> int:
    """Its end is 48 bits, a checksum of 32, and up to 7 bits that fill the last byte."""
    tail = int.from_bytes(data[-11:], "big")
    if any(tail >> 32 + fill & (1 << 48) - 1 == 0x177245385090 for fill in range(8)):
        return len(data)
    import bz2

    return _unpacked(data, budget, bz2.BZ2Decompressor())


def _xz(data: memoryview, budget: Budget) -> int:
    """The .xz file format, 2.1.2: a footer of 12 bytes, with a checksum and a mark; zeros may follow."""
    end = len(data)
    while end and data[end - 1] == 0 and len(data) - end < _CHUNK:
        end -= 1
    footer = bytes(data[max(end - 12, 0) : end])
    if footer[10:] == b"YZ" and zlib.crc32(footer[4:10]) == int.from_bytes(footer[:4], "little"):
        return len(data)
    import lzma

    return _lzma_unpacked(data, budget, lzma.FORMAT_XZ)


def _lzma(data: memoryview, budget: Budget) -> int:
    import lzma

    return _lzma_unpacked(data, budget, lzma.FORMAT_ALONE)


def _lzma_unpacked(data: memoryview, budget: Budget, form: int) -> int:
    import lzma

    try:
        return _unpacked(data, budget, lzma.LZMADecompressor(form, memlimit=LARGEST))
    except lzma.LZMAError as error:  # one for all: too large a dictionary, too
        raise UnknownError from error


class _Reader:
    """Numbers and lengths, from the front; past the end is TruncatedError."""

    def __init__(self, data: memoryview, at: int) -> None:
        self.data = data
        self.at = at

    def skip(self, count: int) -> None:
        self.at += count
        if self.at > len(self.data):
            raise TruncatedError

    def number(self, size: int) -> int:
        """A little-endian number of `size` bytes."""
        start = self.at
        self.skip(size)
        return int.from_bytes(self.data[start : self.at], "little")


def _zstd(data: memoryview, budget: Budget) -> int:
    """RFC 8878, 3.1.1: frames of blocks with their lengths, the last of which is marked."""
    reader = _Reader(data, 4)
    descriptor = reader.number(1)
    one_segment = descriptor >> 5 & 1
    reader.skip((0 if one_segment else 1) + (0, 1, 2, 4)[descriptor & 3])  # window, dictionary
    reader.skip((one_segment, 2, 4, 8)[descriptor >> 6])  # length of the content
    last = 0
    while not last:
        header = reader.number(3)
        last, kind, size = header & 1, header >> 1 & 3, header >> 3
        if kind == 3:
            raise UnknownError
        reader.skip(1 if kind == 1 else size)  # kind 1: one byte, `size` times
    reader.skip(4 if descriptor & 4 else 0)  # checksum
    return reader.at


def _lz4(data: memoryview, budget: Budget) -> int:
    """doc/lz4_Frame_format.md of LZ4, "Legacy frame": blocks with their lengths; the end of data is the end."""
    reader = _Reader(data, 4)
    while len(data) - reader.at >= 4:
        size = reader.number(4)
        if not 0 < size <= LARGEST_LZ4:
            return reader.at - 4  # something else, or zeros
        reader.skip(size)
    return reader.at


def _lzo(data: memoryview, budget: Budget) -> int:
    """The lzop format: a header, then blocks with their lengths, then a length of 0."""
    from . import lzop

    try:
        return lzop.skip(data)
    except lzop.TruncatedError as error:
        raise TruncatedError from error
    except ValueError as error:
        raise UnknownError from error


_SKIPPERS: tuple[tuple[bytes, Callable[[memoryview, Budget], int]], ...] = (
    (b"\x1f\x8b", _gzip),
    (b"BZh", _bzip2),
    (b"\x5d\x00\x00", _lzma),
    (b"\xfd7zXZ\x00", _xz),
    (b"\x89LZO", _lzo),
    (b"\x02\x21\x4c\x18", _lz4),
    (b"\x28\xb5\x2f\xfd", _zstd),
)
