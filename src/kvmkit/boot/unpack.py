"""Unpacking a bzImage's payload on the host, which takes a small part of the time the guest itself would need.

The payload is vmlinux (an ELF file, and behind it its relocations) in one of seven formats. All but gzip are followed
by the unpacked length, four bytes, little-endian; gzip has that length at its own end.
Source: Documentation/arch/x86/boot.rst of Linux, "payload_offset", and its scripts/Makefile.lib, "size_append".
"""

from __future__ import annotations

from collections.abc import Callable

MAX_VMLINUX = 512 << 20
"""No kernel unpacks to more: this bounds what a hostile payload makes us allocate."""


class CannotUnpackError(Exception):
    """The payload is in an unknown format, or not what it should be; the text says which."""


class DamagedError(CannotUnpackError):
    """Nobody can unpack it: its own decompressor would only halt, and say so where nobody may look."""


def unpack(payload: memoryview) -> bytes:
    """The bytes of vmlinux. Raises CannotUnpackError, and DamagedError when the data itself is damaged."""
    if len(payload) < 8:
        raise CannotUnpackError("the payload is too short")
    size = int.from_bytes(payload[-4:], "little")
    if not 0 < size <= MAX_VMLINUX:
        raise CannotUnpackError(f"the payload claims to unpack to {size} bytes")
    for magic, name, decompress in _CODECS:
        if payload[: len(magic)] == magic:
            body = payload if name == "gzip" else payload[:-4]
            try:
                data = decompress(body, size)
            except MemoryError:
                raise
            except Exception as error:  # each library has its own errors; all mean that the data is damaged
                raise DamagedError(f"its {name} data is damaged ({error})") from error
            if len(data) != size:
                raise CannotUnpackError(f"its {name} data unpacks to {len(data)} bytes, not {size}")
            return data
    raise CannotUnpackError("the payload is in an unknown format")


# Each of these gives at most `size` bytes, or one more when there would be more.


def _gzip(data: memoryview, size: int) -> bytes:
    import zlib

    unpacker = zlib.decompressobj(wbits=31)
    out = unpacker.decompress(data, size + 1)
    if not unpacker.eof:
        # zlib sees the checksum only when asked once more.
        out += unpacker.decompress(unpacker.unconsumed_tail, 1)
    if not unpacker.eof:
        raise ValueError("no end")
    return out


def _bzip2(data: memoryview, size: int) -> bytes:
    import bz2

    return _to_end(bz2.BZ2Decompressor(), data, size)


def _lzma(data: memoryview, size: int) -> bytes:
    import lzma

    # The kernel's own limit on a dictionary is far below this one.
    return _to_end(lzma.LZMADecompressor(lzma.FORMAT_ALONE, memlimit=MAX_VMLINUX), data, size)


def _xz(data: memoryview, size: int) -> bytes:
    import lzma

    return _to_end(lzma.LZMADecompressor(lzma.FORMAT_XZ, memlimit=MAX_VMLINUX), data, size)


def _to_end(unpacker: object, data: memoryview, size: int) -> bytes:
    """Drive a decompressor of the standard library: it must reach its end mark, where its checks are made."""
    step: Callable[[bytes | memoryview, int], bytes] = unpacker.decompress  # type: ignore[attr-defined] # bz2, lzma
    out = step(data, size + 1)
    while len(out) <= size and not unpacker.eof and not unpacker.needs_input:  # type: ignore[attr-defined] # the same
        more = step(b"", size + 1 - len(out))
        if not more:
            break
        out += more
    if not unpacker.eof and not _open_ended(data, size, out):  # type: ignore[attr-defined] # the same
        raise ValueError("no end")
    return out


def _open_ended(data: memoryview, size: int, out: bytes) -> bool:
    """Whether this is LZMA with a known length, which has no end mark: then the length is the end."""
    return bytes(data[:1]) == b"\x5d" and bytes(data[5:13]) != b"\xff" * 8 and len(out) == size


def _lzo(data: memoryview, size: int) -> bytes:
    from .lzop import decompress

    return decompress(data, size)


def _lz4(data: memoryview, size: int) -> bytes:
    from .lz4legacy import decompress

    return decompress(data, size)


def _zstd(data: memoryview, size: int) -> bytes:
    import zstandard

    out = bytearray(size + 1)
    filled = 0
    # Kernels are packed with windows of up to 128 MiB, the library's own default limit.
    with zstandard.ZstdDecompressor().stream_reader(data) as reader:
        while filled < len(out):
            count = reader.readinto(memoryview(out)[filled:])
            if not count:
                break
            filled += count
    return bytes(out[:filled])


_CODECS: tuple[tuple[bytes, str, Callable[[memoryview, int], bytes]], ...] = (
    (b"\x1f\x8b", "gzip", _gzip),
    (b"BZh", "bzip2", _bzip2),
    (b"\x5d\x00\x00", "lzma", _lzma),
    (b"\xfd7zXZ\x00", "xz", _xz),
    (b"\x89LZO\x00\r\n\x1a\n", "lzo", _lzo),
    (b"\x02\x21\x4c\x18", "lz4", _lz4),
    (b"\x28\xb5\x2f\xfd", "zstd", _zstd),
)
