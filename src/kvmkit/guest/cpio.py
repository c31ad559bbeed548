"""Write a cpio archive in the "newc" format, which is what the kernel unpacks as an initramfs.

Source: the kernel's Documentation/driver-api/early-userspace/buffer-format.rst. Nothing is compressed:
unpacking would cost the guest more time than reading a few megabytes from memory does.
"""

from __future__ import annotations

import stat
from typing import BinaryIO


class CpioWriter:
    """Entries are owned by root and dated 0, so that the same input gives the same bytes.

    A directory is added before what lies in it: the kernel does not make missing parents.
    """

    def __init__(self, out: BinaryIO) -> None:
        self._out = out
        self._inode = 0
        self._directories: set[str] = {""}

    def directory(self, name: str, mode: int = 0o755) -> None:
        """Parents that are missing are added too."""
        name = name.strip("/")
        if name in self._directories:
            return
        self.directory(name.rpartition("/")[0])
        self._directories.add(name)
        self._entry(name, stat.S_IFDIR | mode, b"", links=2)

    def file(self, name: str, data: bytes, mode: int = 0o644) -> None:
        self._parent(name)
        self._entry(name, stat.S_IFREG | mode, data)

    def symlink(self, name: str, target: str) -> None:
        self._parent(name)
        self._entry(name, stat.S_IFLNK | 0o777, target.encode())

    def character_device(self, name: str, major: int, minor: int, mode: int = 0o600) -> None:
        self._parent(name)
        self._entry(name, stat.S_IFCHR | mode, b"", device=(major, minor))

    def finish(self) -> None:
        self._inode = -1
        self._entry("TRAILER!!!", 0, b"")
        self._out.write(bytes(-self._out.tell() % 512))

    def _parent(self, name: str) -> None:
        self.directory(name.strip("/").rpartition("/")[0])

    def _entry(self, name: str, mode: int, data: bytes, links: int = 1, device: tuple[int, int] = (0, 0)) -> None:
        self._inode += 1
        encoded = name.strip("/").encode() + b"\0"
        # inode, mode, uid, gid, links, mtime, size, device of the archive (2), device (2), name's size, checksum
        fields = (self._inode, mode, 0, 0, links, 0, len(data), 0, 0, *device, len(encoded), 0)
        header = b"070701" + b"".join(b"%08X" % field for field in fields)
        self._out.write(header + encoded + bytes(-(len(header) + len(encoded)) % 4))
        self._out.write(data)
        self._out.write(bytes(-len(data) % 4))
