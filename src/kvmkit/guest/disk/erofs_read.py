"""Read an uncompressed EROFS file system into a tree, whose contents stay in the file.

Everything in it is checked: an image that was tampered with gives an error, never a wrong read or an endless loop.
Source: as erofs.py.
"""

from __future__ import annotations

import os
import stat
import struct
from typing import BinaryIO

from kvmkit.errors import KvmkitError
from kvmkit.guest.disk.erofs import (
    BLOCK,
    DIRENT,
    FILE_TYPES,
    INLINE,
    INODE,
    MAGIC,
    PLAIN,
    SLOT,
    SUPER,
    SUPER_OFFSET,
    XATTR,
    XATTR_HEADER,
    XATTR_PREFIXES,
)
from kvmkit.guest.disk.tree import LINK_MAX, NAME_MAX, Node, Part, Tree

FILES_MAX = 4_000_000
DIRECTORY_MAX = 256 << 20


def read(file: BinaryIO) -> Tree:
    """The tree of the file system in `file`, which must stay open. KvmkitError: it is none of ours, or is damaged."""
    try:
        return _Reader(file).tree()
    except (struct.error, IndexError, ValueError) as error:
        raise KvmkitError(f"{getattr(file, 'name', 'the image')}: a damaged root file system: {error}") from None


class _Reader:
    def __init__(self, file: BinaryIO) -> None:
        self._file = file
        self._fd = file.fileno()
        self._end = os.fstat(self._fd).st_size
        fields = SUPER.unpack(os.pread(self._fd, SUPER.size, SUPER_OFFSET))
        if fields[0] != MAGIC or fields[3] != 12 or fields[14]:
            raise ValueError("not an EROFS file system as kvmkit writes them")
        self._root, self._meta = fields[5], fields[10] * BLOCK
        self._nodes: dict[int, Node] = {}

    def tree(self) -> Tree:
        tree = Tree()
        tree.root = self._node(self._root)
        if not tree.root.is_directory:
            raise ValueError("its root is no directory")
        todo = [(tree.root, self._root)]
        while todo:
            directory, nid = todo.pop()
            for name, below in self._entries(directory):
                known = below in self._nodes
                node = self._node(below)
                if node.is_directory:
                    if known:
                        raise ValueError("a directory in two places")
                    todo.append((node, below))
                directory.children[name] = node
                if len(self._nodes) > FILES_MAX:
                    raise ValueError("too many files")
            directory.data = b""
            del nid
        return tree

    def _at(self, offset: int, size: int) -> bytes:
        if offset < 0 or offset + size > self._end:
            raise ValueError("something in it lies beyond its end")
        return os.pread(self._fd, size, offset)

    def _node(self, nid: int) -> Node:
        node = self._nodes.get(nid)
        if node is not None:
            return node
        place = self._meta + nid * SLOT
        form, count, mode, _nb, size, where, _ino, uid, gid, mtime, _ns, _links = INODE.unpack(
            self._at(place, INODE.size)
        )
        layout = form >> 1 & 7
        if not form & 1 or layout not in (PLAIN, INLINE) or stat.S_IFMT(mode) not in FILE_TYPES:
            raise ValueError(f"inode {nid} is of a form that kvmkit does not write")
        after = place + INODE.size
        xattrs: dict[bytes, bytes] = {}
        if count:
            length = XATTR_HEADER + (count - 1) * 4
            xattrs = _read_xattrs(self._at(after, length))
            after += length
        node = Node(mode, uid, gid, mtime, xattrs=xattrs)
        if stat.S_ISCHR(mode) or stat.S_ISBLK(mode):
            node.rdev = (where >> 8 & 0xFFF, (where & 0xFF) | (where >> 12 & 0xFFF00))
        elif size:
            node.data = self._data(mode, size, where * BLOCK, after if layout == INLINE else -1)
        self._nodes[nid] = node
        return node

    def _data(self, mode: int, size: int, start: int, inline: int) -> bytes | Part:
        whole = size if inline < 0 else size // BLOCK * BLOCK
        if start + whole > self._end or (inline >= 0 and inline + size - whole > self._end):
            raise ValueError("a file lies beyond its end")
        if (stat.S_ISLNK(mode) and size > LINK_MAX) or (stat.S_ISDIR(mode) and size > DIRECTORY_MAX):
            raise ValueError("a directory or symbolic link is too long")
        if inline < 0:
            return Part(self._file, start, size)
        if whole == 0:
            return self._at(inline, size)
        return Joined(self._file, start, size, whole, inline)

    def _entries(self, directory: Node) -> list[tuple[bytes, int]]:
        data = directory.contents()
        found = []
        for at in range(0, len(data), BLOCK):
            block = data[at : at + BLOCK]
            first = DIRENT.unpack_from(block)[1]
            if first % DIRENT.size or not DIRENT.size <= first <= len(block):
                raise ValueError("a directory is damaged")
            entries = [DIRENT.unpack_from(block, place) for place in range(0, first, DIRENT.size)]
            ends = [entry[1] for entry in entries[1:]] + [len(block)]
            for (nid, start, _kind), end in zip(entries, ends, strict=True):
                name = block[start:end].rstrip(b"\0")
                if not name or len(name) > NAME_MAX or b"/" in name or b"\0" in name or start > end:
                    raise ValueError("a directory is damaged")
                if name not in (b".", b".."):
                    found.append((name, nid))
        return found


class Joined(Part):
    """Contents in whole blocks at one place, and the rest at another."""

    __slots__ = ("rest", "whole")

    def __init__(self, file: BinaryIO, offset: int, size: int, whole: int, rest: int) -> None:
        super().__init__(file, offset, size)
        self.whole, self.rest = whole, rest

    def read(self) -> bytes:
        return b"".join(self.chunks())

    def chunks(self, done: int = 0):  # type: ignore[no-untyped-def]  # as Part's
        yield from Part(self.file, self.offset, self.whole).chunks(done)
        yield from Part(self.file, self.rest, self.size - self.whole).chunks(max(done - self.whole, 0))


def _read_xattrs(data: bytes) -> dict[bytes, bytes]:
    prefixes = dict(XATTR_PREFIXES)
    found = {}
    at = XATTR_HEADER
    while at + XATTR.size <= len(data):
        name_size, index, size = XATTR.unpack_from(data, at)
        at += XATTR.size
        if at + name_size + size > len(data) or index not in prefixes:
            raise ValueError("an extended attribute is damaged")
        found[prefixes[index] + data[at : at + name_size]] = data[at + name_size : at + name_size + size]
        at = -(-(at + name_size + size) // 4) * 4
    return found
