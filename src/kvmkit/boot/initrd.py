"""The initial RAM disks: files or bytes, one behind the other as Linux takes them."""

from __future__ import annotations

import re
from collections.abc import Sequence
from pathlib import Path

from kvmkit.errors import BadInput

from . import packed_end
from .files import Source

_ARCHIVES = (b"070701", b"070702")
_PACKED = (
    b"\x1f\x8b",
    b"BZh",
    b"\x5d\x00\x00",
    b"\xfd7zXZ\x00",
    b"\x89LZO",
    b"\x02\x21\x4c\x18",
    b"\x28\xb5\x2f\xfd",
)
_FILE_SYSTEMS = (b"-rom1fs-", b"hsqs", b"\x45\x3d\xcd\x28")  # romfs, squashfs, cramfs
_EXT2 = slice(0x438, 0x43A)
_TRAILER = b"TRAILER!!!\0"
_NUMBER = re.compile(rb"[0-9A-Fa-f]{8}")
_PIECE = 64 << 10
_PARTS = 16
"""Archives in one file that are looked at: a distribution's has two or three."""


def open_all(given: Sequence[Path | bytes], *, any_content: bool = False) -> list[tuple[str, memoryview]]:
    """Name and bytes of each. Raises BadInput for what can't be read, is empty, or is nothing that Linux unpacks."""
    opened: list[tuple[str, memoryview]] = []
    for item in given:
        if isinstance(item, bytes):
            name, data = "initrd", memoryview(item)
        else:
            with Source(Path(item), "initrd") as source:
                try:
                    name, data = str(item), source.map()
                except OSError as error:
                    raise BadInput(f"can't read initrd {item}: {error.strerror}") from error
        if not data:
            raise BadInput(f"can't use initrd {name}: it is empty")
        if not any_content and not _known(data):
            raise BadInput(
                f"can't use initrd {name}: neither a cpio archive, plain or compressed, nor a file system's image"
            )
        if not any_content and isinstance(item, Path) and (wrong := _wrong(data)):
            raise BadInput(f"can't use initrd {name}: it is {wrong}")
        opened.append((name, data))
    return opened


def _known(data: memoryview) -> bool:
    head = bytes(data[:4096])
    # Zeros between archives are allowed, and so before the first one.
    return head.lstrip(b"\0").startswith(_ARCHIVES + _PACKED + _FILE_SYSTEMS) or head[_EXT2] == b"\x53\xef"


def _wrong(data: memoryview) -> str:
    """Whether it is truncated, or damaged, and how; "" when nothing is known of that.

    Linux takes what is there of a truncated one, and the guest then lacks files without a word. What ends with a plain
    archive's trailer is not walked through: it costs nothing.
    """
    if bytes(data[-1024:]).rstrip(b"\0").endswith(_TRAILER[:-1]):
        return ""
    at, budget = 0, packed_end.Budget()
    for _ in range(_PARTS):
        while (piece := bytes(data[at : at + _PIECE])) and not piece.strip(b"\0"):  # zeros between archives
            at += len(piece)
        at += len(piece) - len(piece.lstrip(b"\0"))
        if at >= len(data):
            return ""
        if bytes(data[at : at + 6]) in _ARCHIVES:
            at, lacks = _plain(data, at)
            if lacks or at < 0:
                return lacks and f"truncated: {lacks}"
            continue
        try:
            at += packed_end.skip(data[at:], budget)
        except packed_end.TruncatedError:
            return "truncated: its compressed data has no end"
        except packed_end.DamagedError as error:
            return f"damaged: its compressed data can't be unpacked ({error})"
        except packed_end.UnknownError:
            return ""
    return ""


def _plain(data: memoryview, at: int) -> tuple[int, str]:
    """Where the plain archive at `at` ends (-1: nobody knows), and what is missing there."""
    while bytes(data[at : at + 6]) in _ARCHIVES:
        header = bytes(data[at : at + 110])
        if len(header) < 110:
            return at, "it ends in a file's header"
        numbers = header[54:62], header[94:102]
        if not all(map(_NUMBER.fullmatch, numbers)):
            return -1, ""  # not truncated but damaged, which the guest's kernel tells
        size, length = (int(number, 16) for number in numbers)
        name = bytes(data[at + 110 : at + 110 + min(length, 4096)])
        start = at + (110 + length + 3 & ~3)
        at = start + (size + 3 & ~3)
        if name == _TRAILER:
            return at, ""
        if start + size > len(data):
            shown = name.rstrip(b"\0").decode(errors="replace")
            return at, f"{shown or 'a file'} has {max(len(data) - start, 0)} of {size} bytes"
    return -1, "it has no end" if at >= len(data) else ""
