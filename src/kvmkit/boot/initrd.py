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
        opened.append((name, data))
    return opened


def _known(data: memoryview) -> bool:
    head = bytes(data[:4096])
    # Zeros between archives are allowed, and so before the first one.
    return head.lstrip(b"\0").startswith(_ARCHIVES + _PACKED + _FILE_SYSTEMS) or head[_EXT2] == b"\x53\xef"
