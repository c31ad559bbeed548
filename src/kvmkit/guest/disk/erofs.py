"""Write a tree as an EROFS file system, uncompressed: what a guest reads is then a host's page, and costs it no CPU.

Contents come first, in whole blocks; then the inodes, each followed by what is over of its contents when that fits
in its block. Source: the kernel's Documentation/filesystems/erofs.rst and fs/erofs/erofs_fs.h (the on-disk format).
"""

from __future__ import annotations

import os
import stat
import struct
from typing import BinaryIO

from kvmkit.errors import KvmkitError
from kvmkit.guest.disk.tree import Node, Tree

BLOCK = 4096
SLOT = 32
MAGIC = 0xE0F5E1E2
SUPER_OFFSET = 1024
SUPER = struct.Struct("<IIIBBHQQIIII16s16sIHHHBBIQ24x")
INODE = struct.Struct("<HHHHQIIIIQII16x")  # the extended form, which has times
DIRENT = struct.Struct("<QHBx")
XATTR = struct.Struct("<BBH")
XATTR_HEADER = 12
PLAIN, INLINE = 0, 2
XATTR_PREFIXES = ((1, b"user."), (2, b"system.posix_acl_access"), (3, b"system.posix_acl_default"),
                  (4, b"trusted."), (6, b"security."))  # fmt: skip
FILE_TYPES = {
    stat.S_IFREG: 1, stat.S_IFDIR: 2, stat.S_IFCHR: 3, stat.S_IFBLK: 4,
    stat.S_IFIFO: 5, stat.S_IFSOCK: 6, stat.S_IFLNK: 7,
}  # fmt: skip


class _Inode:
    """What is written of a node: first its place is found, then, when all places are known, it is written."""

    __slots__ = ("block", "links", "nid", "node", "number", "size", "tail", "xattrs")

    def __init__(self, node: Node, number: int) -> None:
        self.node = node
        self.number = number
        self.links = 0
        self.nid = -1
        self.block = 0
        self.tail = b""
        self.size = 0
        self.xattrs = _xattrs(node.xattrs)


def write(tree: Tree, out: BinaryIO, *, uuid: bytes = bytes(16)) -> int:
    """Write the file system at the start of `out`, an empty file. Returns its size in bytes, a multiple of 4096.

    The same tree gives the same bytes. KvmkitError: it can't be held (a name or number out of range).
    """
    inodes = _number(tree.root)
    block = 1
    for inode in inodes.values():
        if inode.node.is_directory:
            inode.size = _directory_size(inode.node)
            continue
        inode.size = inode.node.size
        if not stat.S_ISREG(inode.node.mode) and not stat.S_ISLNK(inode.node.mode):
            inode.size = 0
        elif inode.size:
            block = _write_contents(inode, out, block)
    meta_block = block
    end = _place(inodes, meta_block)
    blocks, late = _directory_blocks(inodes, meta_block + -(-end // BLOCK))
    out.seek(meta_block * BLOCK)
    out.write(_metadata(inodes, end))
    for number, data in late:
        out.seek(number * BLOCK)
        out.write(data)
    out.truncate(blocks * BLOCK)
    root = inodes[id(tree.root)]
    out.seek(SUPER_OFFSET)
    numbers = (root.nid, len(inodes), 0, 0, blocks, meta_block, 0)
    out.write(SUPER.pack(MAGIC, 0, 0, 12, 0, *numbers, uuid, b"kvmkit", *[0] * 8))
    out.flush()
    return blocks * BLOCK


def _number(root: Node) -> dict[int, _Inode]:
    """The inodes in the order in which they lie, the root first, then directory by directory."""
    inodes = {id(root): _Inode(root, 1)}
    inodes[id(root)].links = 2
    todo = [root]
    for directory in todo:
        for name in sorted(directory.children):
            node = directory.children[name]
            inode = inodes.get(id(node))
            if inode is None:
                inode = inodes[id(node)] = _Inode(node, len(inodes) + 1)
                if node.is_directory:
                    inode.links = 1  # its own "."
                    todo.append(node)
            elif node.is_directory:
                raise KvmkitError("a directory is in two places")
            inode.links += 1
            if node.is_directory:
                inodes[id(directory)].links += 1
    return inodes


def _write_contents(inode: _Inode, out: BinaryIO, block: int) -> int:
    """Write the contents but for what is to follow the inode. Returns the next block."""
    inode.block = block
    tail = inode.size % BLOCK
    whole = inode.size - tail
    if tail + INODE.size + len(inode.xattrs) > BLOCK:
        whole, tail = inode.size, 0
    out.seek(block * BLOCK)
    done = 0
    for chunk in inode.node.chunks():
        keep = max(min(whole - done, len(chunk)), 0)
        out.write(chunk[:keep] if keep < len(chunk) else chunk)
        if keep < len(chunk):
            inode.tail += chunk[keep:]
        done += len(chunk)
    if done != inode.size:
        raise KvmkitError("a file changed its size while it was read")
    return block + -(-whole // BLOCK)


def _directory_size(node: Node) -> int:
    """Bytes of its contents: whole blocks, but for the last."""
    size, used = 0, 0
    for name in sorted([b".", b"..", *node.children]):
        need = DIRENT.size + len(name)
        if used + need > BLOCK:
            size, used = size + BLOCK, 0
        used += need
    return size + used


def _place(inodes: dict[int, _Inode], meta_block: int) -> int:
    """Give each inode its place. Returns how many bytes the inodes take."""
    at = 0
    for inode in inodes.values():
        head = INODE.size + len(inode.xattrs)
        tail = inode.size % BLOCK if inode.node.is_directory else len(inode.tail)
        if head + tail > BLOCK:
            tail = 0
        if head > BLOCK:
            raise KvmkitError("the extended attributes of a file are too long")
        at = -(-at // SLOT) * SLOT
        if at % BLOCK + head + tail > BLOCK:
            at = -(-at // BLOCK) * BLOCK
        inode.nid = at // SLOT
        at += head + tail
    return at


def _directory_blocks(inodes: dict[int, _Inode], block: int) -> tuple[int, list[tuple[int, bytes]]]:
    """Make the directories' contents. Returns the file system's blocks, and what lies in blocks after the inodes."""
    late = []
    for inode, parent in _with_parents(inodes):
        data = _directory(inode, parent, inodes)
        tail = len(data) % BLOCK
        if INODE.size + len(inode.xattrs) + tail > BLOCK:
            tail = 0
        whole = len(data) - tail
        inode.tail = data[whole:]
        inode.block = block
        if whole:
            late.append((block, data[:whole].ljust(-(-whole // BLOCK) * BLOCK, b"\0")))
            block += -(-whole // BLOCK)
    return block, late


def _with_parents(inodes: dict[int, _Inode]) -> list[tuple[_Inode, _Inode]]:
    first = next(iter(inodes.values()))
    found = [(first, first)]
    for inode, _parent in found:
        below = [inodes[id(node)] for _name, node in sorted(inode.node.children.items()) if node.is_directory]
        found += [(each, inode) for each in below]
    return found


def _directory(inode: _Inode, parent: _Inode, inodes: dict[int, _Inode]) -> bytes:
    entries = [(b".", inode), (b"..", parent)]
    entries += [(name, inodes[id(node)]) for name, node in inode.node.children.items()]
    entries.sort(key=lambda entry: entry[0])
    blocks: list[bytes] = []
    group: list[tuple[bytes, _Inode]] = []
    used = 0
    for name, each in entries:
        if used + DIRENT.size + len(name) > BLOCK:
            blocks.append(_directory_block(group).ljust(BLOCK, b"\0"))
            group, used = [], 0
        group.append((name, each))
        used += DIRENT.size + len(name)
    return b"".join([*blocks, _directory_block(group)])


def _directory_block(entries: list[tuple[bytes, _Inode]]) -> bytes:
    at = DIRENT.size * len(entries)
    head = b""
    for name, inode in entries:
        head += DIRENT.pack(inode.nid, at, FILE_TYPES[stat.S_IFMT(inode.node.mode)])
        at += len(name)
    return head + b"".join(name for name, _inode in entries)


def _metadata(inodes: dict[int, _Inode], end: int) -> bytearray:
    data = bytearray(-(-end // BLOCK) * BLOCK)
    for inode in inodes.values():
        node = inode.node
        layout = INLINE if inode.tail else PLAIN
        where = inode.block
        if stat.S_ISCHR(node.mode) or stat.S_ISBLK(node.mode):
            major, minor = node.rdev
            where = (minor & 0xFF) | (major & 0xFFF) << 8 | (minor & ~0xFF) << 12
        count = (len(inode.xattrs) - XATTR_HEADER) // 4 + 1 if inode.xattrs else 0
        try:
            head = INODE.pack(
                1 | layout << 1, count, node.mode, 0, inode.size, where, inode.number, node.uid, node.gid,
                max(node.mtime, 0), 0, inode.links,
            )  # fmt: skip
        except struct.error:
            raise KvmkitError(f"a file's owner {node.uid}:{node.gid} or time {node.mtime} is out of range") from None
        at = inode.nid * SLOT
        whole = head + inode.xattrs + inode.tail
        data[at : at + len(whole)] = whole
    return data


def _xattrs(xattrs: dict[bytes, bytes]) -> bytes:
    """The extended attributes as they follow an inode. Names of other kinds than the format knows are left out."""
    entries = b""
    for full, value in sorted(xattrs.items()):
        for index, prefix in XATTR_PREFIXES:
            name = full.removeprefix(prefix)
            if full.startswith(prefix) and len(name) < 256 and len(value) < 65536:
                entry = XATTR.pack(len(name), index, len(value)) + name + value
                entries += entry.ljust(-(-len(entry) // 4) * 4, b"\0")
                break
    return bytes(XATTR_HEADER) + entries if entries else b""


def is_erofs(path: str | os.PathLike[str]) -> bool:
    """Whether a file begins like one."""
    try:
        with open(path, "rb") as file:
            file.seek(SUPER_OFFSET)
            return file.read(4) == MAGIC.to_bytes(4, "little")
    except OSError:
        return False
