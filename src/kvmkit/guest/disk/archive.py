"""tar archives into a tree, layer by layer as container images have them, and a tree into a tar archive."""

from __future__ import annotations

import os
import stat
import tarfile
from collections.abc import Callable
from typing import BinaryIO

from kvmkit.errors import KvmkitError
from kvmkit.guest.disk.tree import LINK_MAX, Node, Part, Tree

_XATTR = "SCHILY.xattr."
_TYPES = {
    tarfile.REGTYPE: stat.S_IFREG, tarfile.AREGTYPE: stat.S_IFREG, tarfile.CONTTYPE: stat.S_IFREG,
    tarfile.DIRTYPE: stat.S_IFDIR, tarfile.SYMTYPE: stat.S_IFLNK, tarfile.FIFOTYPE: stat.S_IFIFO,
    tarfile.CHRTYPE: stat.S_IFCHR, tarfile.BLKTYPE: stat.S_IFBLK,
}  # fmt: skip
WHITEOUT, OPAQUE = b".wh.", b".wh..wh..opq"
FILES_MAX = 4_000_000


def add_tar(
    tree: Tree, file: BinaryIO, *, whiteouts: bool = False, advance: Callable[[int], None] | None = None
) -> None:
    """Add an uncompressed archive to the tree; its contents stay in `file`, which must stay open.

    `whiteouts`: names that begin with .wh. remove what is below, as in a layer of a container image.
    Source: pax(1) of POSIX; the OCI image specification, layer.md. KvmkitError: it is damaged.
    """
    try:
        with tarfile.open(fileobj=file, mode="r:", errorlevel=2) as archive:
            for count, member in enumerate(archive):
                if count > FILES_MAX:
                    raise KvmkitError("the archive has too many files")
                _add(tree, member, file, whiteouts)
                archive.members = []  # type: ignore[attr-defined]  # else it keeps them all
                if advance is not None and count % 256 == 0:
                    advance(member.offset)
    except (tarfile.TarError, OSError, ValueError) as error:
        raise KvmkitError(f"{getattr(file, 'name', 'the archive')}: a damaged tar archive: {error}") from None


def _add(tree: Tree, member: tarfile.TarInfo, file: BinaryIO, whiteouts: bool) -> None:
    path = os.fsencode(member.name).strip(b"/").removeprefix(b"./")
    if b".." in path.split(b"/"):
        raise KvmkitError(f"the archive has a name with .. in it: {member.name!r}")
    path = b"" if path == b"." else path
    parent, _slash, name = path.rpartition(b"/")
    if whiteouts and name.startswith(WHITEOUT):
        if name == OPAQUE:
            tree.empty(tree.resolve(parent + b"/."))
        else:
            tree.remove(parent + b"/" + name.removeprefix(WHITEOUT))
        return
    if member.type == tarfile.LNKTYPE:
        target = tree.get(tree.resolve(os.fsencode(member.linkname).strip(b"/")))
        if target is None or target.is_directory:
            raise KvmkitError(f"the archive links {member.name!r} to {member.linkname!r}, which is not there")
        tree.put(path, target)
        return
    kind = _TYPES.get(member.type)
    if member.type == tarfile.GNUTYPE_SPARSE or kind is None:
        raise KvmkitError(f"the archive's {member.name!r} is of a kind that kvmkit does not know")
    node = Node(kind | member.mode & 0o7777, member.uid, member.gid, int(member.mtime))
    node.xattrs = {
        os.fsencode(key.removeprefix(_XATTR)): os.fsencode(value)
        for key, value in member.pax_headers.items()
        if key.startswith(_XATTR)
    }
    if kind == stat.S_IFLNK:
        node.mode = stat.S_IFLNK | 0o777
        node.data = os.fsencode(member.linkname)
        if len(node.data) > LINK_MAX:
            raise KvmkitError(f"the archive's symbolic link {member.name!r} is too long")
    elif kind == stat.S_IFREG and member.size:
        node.data = Part(file, member.offset_data, member.size)
    elif kind in (stat.S_IFCHR, stat.S_IFBLK):
        node.rdev = (member.devmajor, member.devminor)
    tree.put(path, node)


def write_tar(tree: Tree, out: BinaryIO) -> None:
    """The tree as a pax archive, names sorted, a file with two names as a link."""
    seen: dict[int, str] = {}
    with tarfile.open(fileobj=out, mode="w|", format=tarfile.PAX_FORMAT) as archive:
        for path, node in tree.walk():
            member = tarfile.TarInfo(os.fsdecode(b"./" + path) if path else ".")
            member.mode, member.uid, member.gid, member.mtime = node.mode & 0o7777, node.uid, node.gid, node.mtime
            kind = stat.S_IFMT(node.mode)
            if id(node) in seen:
                member.type, member.linkname = tarfile.LNKTYPE, seen[id(node)]
                archive.addfile(member)
                continue
            if not node.is_directory:
                seen[id(node)] = member.name
            member.type = next((key for key, value in _TYPES.items() if value == kind), b"")
            if not member.type:
                continue  # a socket: nothing that an archive holds
            if kind == stat.S_IFLNK:
                member.linkname = os.fsdecode(node.contents())
            elif kind == stat.S_IFREG:
                member.size = node.size
            elif kind in (stat.S_IFCHR, stat.S_IFBLK):
                member.devmajor, member.devminor = node.rdev
            member.pax_headers = {_XATTR + os.fsdecode(name): os.fsdecode(value) for name, value in node.xattrs.items()}
            archive.addfile(member, _Reading(node))  # type: ignore[arg-type]  # its parameter has another name


class _Reading:
    """A node's contents as a file that is read once."""

    def __init__(self, node: Node) -> None:
        self._chunks = node.chunks()
        self._left = b""

    def read(self, size: int) -> bytes:
        while len(self._left) < size:
            chunk = next(self._chunks, b"")
            if not chunk:
                break
            self._left += chunk
        data, self._left = self._left[:size], self._left[size:]
        return data
