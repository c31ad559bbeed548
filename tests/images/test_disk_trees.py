"""Trees of files: from tar archives into EROFS and back, and what is damaged."""

from __future__ import annotations

import io
import random
import shutil
import stat
import subprocess
import tarfile
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.errors import KvmkitError
from kvmkit.guest.disk import archive, erofs, erofs_read
from kvmkit.guest.disk.tree import Node, Tree


def listed(tree: Tree) -> dict[bytes, tuple]:
    def data(node: Node) -> bytes:
        return b"" if node.is_directory else node.contents()

    return {
        path: (node.mode, node.uid, node.gid, node.mtime, node.rdev, node.xattrs, data(node))
        for path, node in tree.walk()
    }


def sample() -> Tree:
    tree = Tree()
    for size in (0, 1, 100, 4000, 4032, 4033, 4095, 4096, 4097, 8192, 12_345, 100_000):
        tree.file(f"data/{size}", random.Random(size).randbytes(size), 0o640)
    tree.symlink("bin", "usr/bin")
    tree.file("bin/tool", b"#!/bin/sh\n", 0o4755)  # through the link
    tree.put(b"hard", tree.get(b"data/100") or Node(0))
    for number in range(700):
        tree.file(f"many/{'long-name' * 10}-{number}", b"%d" % number)
    tree.put(b"dev/null", Node(stat.S_IFCHR | 0o666, rdev=(1, 3)))
    tree.put(b"dev/disk", Node(stat.S_IFBLK | 0o660, rdev=(259, 70_000)))
    tree.put(b"fifo", Node(stat.S_IFIFO | 0o600, 1000, 70_000, 1_700_000_000))
    tree.file("ping", b"ping", 0o755)
    ping = tree.get(b"ping")
    assert ping is not None
    ping.xattrs = {b"security.capability": bytes(range(20)), b"user.note": b"x"}
    return tree


def test_a_tree_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    tree = sample()
    with (tmp_path / "root.erofs").open("w+b") as file:
        size = erofs.write(tree, file)
        assert size == (tmp_path / "root.erofs").stat().st_size
        found = erofs_read.read(file)
        assert listed(found) == listed(tree)
        assert found.get(b"hard") is found.get(b"data/100")
        assert found.get(b"usr/bin/tool") is not None
    if shutil.which("fsck.erofs"):
        subprocess.run(["fsck.erofs", str(tmp_path / "root.erofs")], check=True, capture_output=True)


def test_the_same_tree_gives_the_same_bytes(tmp_path: Path) -> None:
    for name in ("a", "b"):
        with (tmp_path / name).open("w+b") as file:
            erofs.write(sample(), file)
    assert (tmp_path / "a").read_bytes() == (tmp_path / "b").read_bytes()


def test_a_tree_goes_through_an_archive(tmp_path: Path) -> None:
    with (tmp_path / "tree.tar").open("w+b") as file:
        archive.write_tar(sample(), file)
        file.seek(0)
        found = Tree()
        archive.add_tar(found, file)
        assert listed(found) == listed(sample())
        assert found.get(b"hard") is found.get(b"data/100")


def layer(*entries: tuple[str, str | None]) -> io.BufferedRandom:
    """A tar archive in a file: names with contents, or None for a directory."""
    import tempfile

    file = tempfile.TemporaryFile()  # noqa: SIM115  # its reader keeps it
    with tarfile.open(fileobj=file, mode="w") as tar:
        for name, text in entries:
            member = tarfile.TarInfo(name)
            member.type = tarfile.DIRTYPE if text is None else tarfile.REGTYPE
            member.mode = 0o755
            member.size = len(text or "")
            tar.addfile(member, io.BytesIO((text or "").encode()))
    file.seek(0)
    return file  # type: ignore[return-value]  # on Linux it is one


def test_layers_remove_what_they_white_out() -> None:
    tree = Tree()
    archive.add_tar(tree, layer(("etc", None), ("etc/a", "1"), ("etc/b", "1"), ("opt/x/y", "1"), ("opt/z", "1")))
    archive.add_tar(tree, layer(("etc/.wh.a", ""), ("etc/c", "2"), ("opt/.wh..wh..opq", "")), whiteouts=True)
    names = {path for path, node in tree.walk() if not node.is_directory}
    assert names == {b"etc/b", b"etc/c"}


@pytest.mark.parametrize("name", ["../../etc/passwd", "a/../../b", "x" * 300])
def test_an_archive_that_would_leave_its_tree_is_refused(name: str) -> None:
    with pytest.raises(KvmkitError):
        archive.add_tar(Tree(), layer((name, "evil")))


def test_links_that_turn_in_circles_are_refused() -> None:
    tree = Tree()
    tree.symlink("a", "b")
    tree.symlink("b", "a")
    with pytest.raises(KvmkitError, match="too many symbolic links"):
        tree.file("a/x", b"")


@settings(max_examples=60, deadline=None)
@given(st.lists(st.tuples(st.integers(0, 1 << 30), st.binary(min_size=1, max_size=8)), max_size=20))
def test_a_damaged_image_gives_a_tree_or_an_error(tmp_path_factory: pytest.TempPathFactory, changes: list) -> None:
    tree = Tree()
    tree.file("a/b", b"x" * 5000)
    tree.file("a/c", b"y" * 50)
    tree.symlink("l", "a/b")
    path = tmp_path_factory.mktemp("damaged") / "root.erofs"
    with path.open("w+b") as file:
        size = erofs.write(tree, file)
        for at, data in changes:
            file.seek(at % size)
            file.write(data)
        file.truncate(size)
        file.flush()
        try:
            for _path, node in erofs_read.read(file).walk():
                if not node.is_directory:
                    node.contents()
        except KvmkitError:
            pass
