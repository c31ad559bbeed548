"""The initial RAM disks: files or bytes, one behind the other as Linux takes them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvmkit.errors import BadInput

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
        if not any_content and isinstance(item, Path) and (lacks := _lacks(data)):
            raise BadInput(f"can't use initrd {name}: it is truncated: {lacks}")
        opened.append((name, data))
    return opened


def _known(data: memoryview) -> bool:
    head = bytes(data[:4096])
    # Zeros between archives are allowed, and so before the first one.
    return head.lstrip(b"\0").startswith(_ARCHIVES + _PACKED + _FILE_SYSTEMS) or head[_EXT2] == b"\x53\xef"


def _lacks(data: memoryview) -> str:
    """What is missing at the end of a plain cpio archive; "" when nothing is, and for all that is packed.

    Linux takes what is there of a truncated one, and the guest then lacks files without a word. An archive that ends
    with its trailer is not walked through: it costs nothing.
    """
    if bytes(data[-1024:]).rstrip(b"\0").endswith(_TRAILER[:-1]):
        return ""
    head = bytes(data[:4096])
    at = len(head) - len(head.lstrip(b"\0"))
    while bytes(data[at : at + 6]) in _ARCHIVES:
        header = bytes(data[at : at + 110])
        if len(header) < 110:
            return "it ends in a file's header"
        try:
            size, length = int(header[54:62], 16), int(header[94:102], 16)
        except ValueError:
            return ""  # not truncated but damaged, which the guest's kernel tells
        name = bytes(data[at + 110 : at + 110 + min(length, 4096)])
        if name == _TRAILER:
            return ""  # what follows is another archive, and may be packed
        start = at + (110 + length + 3 & ~3)
        at = start + (size + 3 & ~3)
        if start + size > len(data):
            shown = name.rstrip(b"\0").decode(errors="replace")
            return f"{shown or 'a file'} has {max(len(data) - start, 0)} of {size} bytes"
    return "it has no end" if at >= len(data) else ""
