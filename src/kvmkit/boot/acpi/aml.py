"""A small encoder for AML, the byte code of ACPI's DSDT: each function gives the bytes of one term.

Source: ACPI Specification 6.5, chapter 20 (AML) and section 6.4 (resource descriptors).
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from uuid import UUID

Value = int | str | bytes
"""A number, a string, or AML that is already encoded."""


def name(path: str, value: Value) -> bytes:
    """Name (path, value)."""
    return b"\x08" + name_string(path) + data(value)


def scope(path: str, *terms: bytes) -> bytes:
    """Scope (path) { terms }."""
    return b"\x10" + _package(name_string(path) + b"".join(terms))


def device(path: str, *terms: bytes) -> bytes:
    """Device (path) { terms }."""
    return b"\x5b\x82" + _package(name_string(path) + b"".join(terms))


def method(path: str, arguments: int, *terms: bytes, serialized: bool = False) -> bytes:
    """Method (path, arguments) { terms }."""
    if not 0 <= arguments <= 7:
        raise ValueError(f"a method takes up to 7 arguments, not {arguments}")
    flags = bytes([arguments | serialized << 3])
    return b"\x14" + _package(name_string(path) + flags + b"".join(terms))


def returns(value: Value) -> bytes:
    """Return (value)."""
    return b"\xa4" + data(value)


def package(*elements: Value) -> bytes:
    """Package () { elements }."""
    if len(elements) > 255:
        raise ValueError("a package holds up to 255 elements")
    return b"\x12" + _package(bytes([len(elements)]) + b"".join(map(data, elements)))


def data(value: Value) -> bytes:
    """A number in its shortest form, or a string."""
    if isinstance(value, bytes):
        return value
    if isinstance(value, str):
        return b"\x0d" + value.encode("ascii") + b"\0"
    if value < 0 or value >> 64:
        raise ValueError(f"{value} is no number of 64 bits")
    if value < 2:
        return bytes([value])  # ZeroOp, OneOp
    for prefix, size in ((0x0A, 1), (0x0B, 2), (0x0C, 4)):
        if value < 1 << 8 * size:
            return bytes([prefix]) + value.to_bytes(size, "little")
    return b"\x0e" + value.to_bytes(8, "little")


# Expressions and statements. An operand is a number, or AML such as a name or another expression.

ARG0, ARG1, ARG2, ARG3 = (bytes([0x68 + i]) for i in range(4))
LOCAL0 = b"\x60"


def buffer(content: bytes) -> bytes:
    """Buffer () { content }."""
    return b"\x11" + _package(data(len(content)) + content)


def uuid(text: str) -> bytes:
    """ToUUID (text): a buffer of 16 bytes, the first three fields little-endian."""
    return buffer(UUID(text).bytes_le)


def dword_field(source: bytes, offset: int, path: str) -> bytes:
    """CreateDWordField (source, offset, path): a name for 32 bits of a buffer."""
    return b"\x8a" + source + data(offset) + name_string(path)


def store(value: Value, target: bytes) -> bytes:
    """Store (value, target)."""
    return b"\x70" + data(value) + target


def bits_and(left: Value, right: Value, target: bytes = b"\0") -> bytes:
    """And (left, right, target)."""
    return b"\x7b" + data(left) + data(right) + target


def bits_or(left: Value, right: Value, target: bytes = b"\0") -> bytes:
    """Or (left, right, target)."""
    return b"\x7d" + data(left) + data(right) + target


def equal(left: Value, right: Value) -> bytes:
    """LEqual (left, right)."""
    return b"\x93" + data(left) + data(right)


def negated(value: bytes) -> bytes:
    """LNot (value)."""
    return b"\x92" + value


def if_(condition: bytes, *terms: bytes) -> bytes:
    """If (condition) { terms }."""
    return b"\xa0" + _package(condition + b"".join(terms))


def else_(*terms: bytes) -> bytes:
    """Else { terms }, right after an If."""
    return b"\xa1" + _package(b"".join(terms))


def eisa_id(text: str) -> bytes:
    """EISAID ("PNP0501"): three letters and four hexadecimal digits in 32 bits."""
    letters, number = text[:3], int(text[3:], 16)
    if len(text) != 7 or not (letters.isascii() and letters.isalpha() and letters.isupper()):
        raise ValueError(f"{text} is no EISA id")
    packed = number
    for shift, letter in zip((26, 21, 16), letters, strict=True):
        packed |= (ord(letter) - 0x40) << shift
    return b"\x0c" + packed.to_bytes(4, "big")  # the one number in ACPI that is stored big-endian


def name_string(path: str) -> bytes:
    """A path such as `\\_SB.COM1`: segments of up to four characters, filled up with underscores."""
    root = b"\\" if path.startswith("\\") else b""
    segments = [_segment(part) for part in path.removeprefix("\\").split(".") if part]
    if not segments:
        return root + b"\0"
    if len(segments) > 255:
        raise ValueError(f"{path} has too many segments")
    prefix = b"" if len(segments) == 1 else b"\x2e" if len(segments) == 2 else bytes([0x2F, len(segments)])
    return root + prefix + b"".join(segments)


def resource_template(*descriptors: bytes) -> bytes:
    """ResourceTemplate () { descriptors }: a buffer that ends with an end tag."""
    return buffer(b"".join(descriptors) + b"\x79\0")  # a checksum of zero stands for none


def io(first: int, count: int, align: int = 1) -> bytes:
    """IO (Decode16, first, first, align, count): ports at a fixed place."""
    return struct.pack("<BBHHBB", 0x47, 1, first, first, align, count)


def irq(*lines: int) -> bytes:
    """IRQNoFlags () { lines }: edge-triggered, active high, as ISA has them."""
    return struct.pack("<BH", 0x22, sum(1 << line for line in lines))


def memory32_fixed(base: int, size: int) -> bytes:
    """Memory32Fixed (ReadWrite, base, size)."""
    return struct.pack("<BHBII", 0x86, 9, 1, base, size)


def bus_numbers(first: int, last: int) -> bytes:
    """WordBusNumber (ResourceProducer, MinFixed, MaxFixed, PosDecode, 0, first, last, 0, count)."""
    return struct.pack("<BHBBBHHHHH", 0x88, 13, 2, 0x0C, 0, 0, first, last, 0, last - first + 1)


def memory_window(first: int, last: int) -> bytes:
    """DWordMemory, or QWordMemory above 4 GiB: (ResourceProducer, PosDecode, MinFixed, MaxFixed, NonCacheable,
    ReadWrite, 0, first, last, 0, count): what a bridge passes on."""
    if last >> 32:
        return struct.pack("<BHBBBQQQQQ", 0x8A, 43, 0, 0x0C, 1, 0, first, last, 0, last - first + 1)
    return struct.pack("<BHBBBIIIII", 0x87, 23, 0, 0x0C, 1, 0, first, last, 0, last - first + 1)


def interrupt(gsis: Sequence[int], *, level: bool = False, active_low: bool = False, shared: bool = False) -> bytes:
    """Interrupt (ResourceConsumer, ...) { gsis }."""
    flags = 1 | (not level) << 1 | active_low << 2 | shared << 3
    return struct.pack(f"<BHBB{len(gsis)}I", 0x89, 2 + 4 * len(gsis), flags, len(gsis), *gsis)


def _segment(text: str) -> bytes:
    letters = text.replace("_", "A")
    if not 1 <= len(text) <= 4 or not (letters.isascii() and letters.isalnum() and letters.isupper()):
        raise ValueError(f"{text!r} is no ACPI name")
    if text[0].isdigit():
        raise ValueError(f"{text!r} is no ACPI name: it starts with a digit")
    return text.ljust(4, "_").encode()


def _package(content: bytes) -> bytes:
    """PkgLength and `content`. The length counts its own bytes, of which the first says how many follow."""
    if len(content) + 1 < 1 << 6:
        return bytes([len(content) + 1]) + content
    for extra in (1, 2, 3):
        total = len(content) + 1 + extra
        if total < 1 << (4 + 8 * extra):
            return bytes([extra << 6 | total & 15]) + (total >> 4).to_bytes(extra, "little") + content
    raise ValueError("the term is longer than AML allows")
