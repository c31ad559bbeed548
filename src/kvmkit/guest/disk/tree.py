"""A tree of files in memory, whose contents stay where they are: in an archive, an image or a file.

Names are bytes, as the kernel has them. A file with two names is one `Node` in two places.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import BinaryIO

from kvmkit.errors import KvmkitError

Path = bytes
"""Without a leading or trailing slash; b"" is the root."""

COPY = 1 << 20
NAME_MAX = 255
LINK_MAX = 4095


@dataclass(slots=True)
class Part:
    """`size` bytes at `offset` of an open file, which must stay open as long as the tree is used."""

    file: BinaryIO
    offset: int
    size: int

    def read(self) -> bytes:
        data = os.pread(self.file.fileno(), self.size, self.offset)
        if len(data) != self.size:
            data += b"".join(self.chunks(len(data)))
        return data

    def chunks(self, done: int = 0) -> Iterator[bytes]:
        """Its bytes, a megabyte at a time. KvmkitError when the file has become shorter."""
        while done < self.size:
            data = os.pread(self.file.fileno(), min(COPY, self.size - done), self.offset + done)
            if not data:
                raise KvmkitError(f"{getattr(self.file, 'name', 'a file')} ends too early")
            done += len(data)
            yield data


@dataclass(slots=True, eq=False)
class Node:
    """`mode` as stat(2) has it, with the type. `data`: of a regular file; of a symbolic link, its target.

    `mtime` is in seconds; `rdev` is (major, minor). Sparse data can't be told from zeros.
    """

    mode: int
    uid: int = 0
    gid: int = 0
    mtime: int = 0
    data: bytes | Part = b""
    rdev: tuple[int, int] = (0, 0)
    xattrs: dict[bytes, bytes] = field(default_factory=dict)
    children: dict[bytes, Node] = field(default_factory=dict)
    """Of a directory."""

    @property
    def is_directory(self) -> bool:
        return stat.S_ISDIR(self.mode)

    @property
    def size(self) -> int:
        return self.data.size if isinstance(self.data, Part) else len(self.data)

    def contents(self) -> bytes:
        return self.data.read() if isinstance(self.data, Part) else self.data

    def chunks(self) -> Iterator[bytes]:
        if isinstance(self.data, Part):
            yield from self.data.chunks()
        elif self.data:
            yield self.data


def directory(mode: int = 0o755) -> Node:
    return Node(stat.S_IFDIR | mode)


class Tree:
    """The nodes by path. What it is given is checked as far as a file system needs it: names, and what is in what."""

    def __init__(self) -> None:
        self.root = directory()

    def get(self, path: Path) -> Node | None:
        """The node there, no symbolic link followed."""
        node: Node | None = self.root
        for name in parts(path):
            if node is None:
                return None
            node = node.children.get(name)
        return node

    def resolve(self, path: Path) -> Path:
        """`path` with the symbolic links among its directories followed within the tree, as the kernel would."""
        done: list[bytes] = []
        todo = list(reversed(parts(path)))
        budget = 40  # as the kernel has it
        while todo:
            name = todo.pop()
            if name == b"..":
                del done[-1:]
                continue
            node = self.get(b"/".join([*done, name]))
            if node is not None and stat.S_ISLNK(node.mode) and todo:
                budget -= 1
                if budget < 0:
                    raise KvmkitError(f"{os.fsdecode(path)}: too many symbolic links")
                target = node.contents()
                if target.startswith(b"/"):
                    done = []
                todo += reversed(parts(target))
                continue
            done.append(name)
        return b"/".join(done)

    def put(self, path: Path, node: Node) -> None:
        """Put the node there in place of what is there; missing parents are made, links to them followed.

        A directory put onto a directory keeps what is in it.
        """
        names = parts(self.resolve(path))
        if not names:
            self.root.mode, self.root.uid, self.root.gid = node.mode, node.uid, node.gid
            self.root.mtime, self.root.xattrs = node.mtime, node.xattrs
            return
        for name in names:
            if not name or len(name) > NAME_MAX or name in (b".", b"..") or b"\0" in name:
                raise KvmkitError(f"{os.fsdecode(path)!r} can't be the name of a file")
        parent = self.root
        for name in names[:-1]:
            below = parent.children.get(name)
            if below is None or not below.is_directory:
                below = parent.children[name] = directory()
            parent = below
        old = parent.children.get(names[-1])
        if old is not None and old.is_directory and node.is_directory:
            node.children = {**old.children, **node.children}
        parent.children[names[-1]] = node

    def file(self, path: str, data: bytes, mode: int = 0o644) -> None:
        """A file of root's."""
        self.put(path.encode(), Node(stat.S_IFREG | mode, data=data))

    def directory(self, path: str, mode: int = 0o755) -> None:
        """A directory of root's; one that is there keeps what is in it."""
        self.put(path.encode(), directory(mode))

    def symlink(self, path: str, target: str) -> None:
        self.put(path.encode(), Node(stat.S_IFLNK | 0o777, data=target.encode()))

    def remove(self, path: Path) -> None:
        """And what is in it. Nothing happens where there is none."""
        names = parts(self.resolve(path))
        parent = self.get(b"/".join(names[:-1])) if names else None
        if parent is not None:
            parent.children.pop(names[-1], None)

    def empty(self, path: Path) -> None:
        """Remove what is in a directory."""
        node = self.get(path)
        if node is not None:
            node.children = {}

    def walk(self) -> Iterator[tuple[Path, Node]]:
        """Every path with its node, sorted by name within each directory, a directory before what is in it."""
        yield b"", self.root
        todo = [(name, node) for name, node in sorted(self.root.children.items(), reverse=True)]
        while todo:
            path, node = todo.pop()
            yield path, node
            todo += [(path + b"/" + name, below) for name, below in sorted(node.children.items(), reverse=True)]


def parts(path: Path) -> list[bytes]:
    """b"/usr//./bin/" is usr and bin. What a path has of ".." is left in it."""
    return [name for name in path.split(b"/") if name not in (b"", b".")]
