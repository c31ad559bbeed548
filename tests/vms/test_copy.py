"""Files into a guest and out of it, and what a guest may not do by them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import tarfile
from pathlib import Path

import pytest

from kvmkit.errors import KvmkitError
from kvmkit.manager.copy import LARGE, unpack


@pytest.mark.guest
@pytest.mark.parametrize("size", [200_000, LARGE + 4321])
def test_a_file_goes_in_and_comes_out_the_same(kvmkit, web: str, tmp_path: Path, size: int) -> None:
    data = os.urandom(size)
    (tmp_path / "in").write_bytes(data)
    (tmp_path / "in").chmod(0o751)
    assert kvmkit("cp", str(tmp_path / "in"), f"{web}:/tmp/").returncode == 0
    told = kvmkit("exec", web, "sh", "-c", "sha256sum < /tmp/in; stat -c %a /tmp/in").stdout
    assert told.split() == [hashlib.sha256(data).hexdigest(), "-", "751"]
    assert kvmkit("cp", f"{web}:/tmp/in", str(tmp_path / "out")).returncode == 0
    assert (tmp_path / "out").read_bytes() == data
    assert (tmp_path / "out").stat().st_mode & 0o777 == 0o751


@pytest.mark.guest
def test_a_large_file_that_does_not_fit_leaves_nothing(kvmkit, web: str, tmp_path: Path) -> None:
    with (tmp_path / "large").open("wb") as file:
        file.truncate(LARGE)
    full = "mkdir -p /tmp/s && mount -t tmpfs -o size=1M none /tmp/s"
    assert kvmkit("exec", web, "sh", "-c", full).returncode == 0
    done = kvmkit("cp", str(tmp_path / "large"), f"{web}:/tmp/s")
    assert (done.returncode, "No space left on device" in done.stderr) == (1, True), done
    assert kvmkit("exec", web, "ls", "-A", "/tmp/s").stdout == ""
    assert kvmkit("exec", web, "umount", "/tmp/s").returncode == 0


@pytest.mark.guest
def test_a_directory_goes_in_and_comes_out_the_same(kvmkit, web: str, tmp_path: Path) -> None:
    tree = tmp_path / "tree"
    (tree / "deep" / "er").mkdir(parents=True)
    (tree / "deep" / "er" / "file").write_text("text")
    (tree / "é b").write_text("")
    (tree / "link").symlink_to("deep/er/file")
    assert kvmkit("cp", str(tree), f"{web}:/tmp").returncode == 0
    done = kvmkit("cp", f"{web}:/tmp/tree", str(tmp_path / "back"))
    assert (done.returncode, done.stderr) == (0, "")
    back = tmp_path / "back"
    assert sorted(str(path.relative_to(back)) for path in back.rglob("*")) == sorted(
        str(path.relative_to(tree)) for path in tree.rglob("*")
    )
    assert (back / "link").readlink() == Path("deep/er/file")
    assert (back / "deep" / "er" / "file").read_text() == "text"
    assert kvmkit("cp", f"{web}:/tmp/tree", str(tmp_path / "tree" / "deep")).returncode == 0
    again = kvmkit("cp", f"{web}:/tmp/tree", str(tmp_path / "tree" / "deep"))
    assert again.returncode == 2
    assert "is there already" in again.stderr


@pytest.mark.guest
@pytest.mark.parametrize(
    ("source", "target", "status", "word"),
    [
        ("web:/none", ".", 2, "is not there"),
        ("/none/at/all", "web:/tmp", 2, "can't read"),
        ("/etc/hostname", "web:/none/at/all", 1, "can't copy"),
        ("a", "b", 2, "NAME:PATH"),
        ("web:/a", "web:/b", 2, "NAME:PATH"),
    ],
)
def test_what_can_not_be_copied(kvmkit, web: str, source: str, target: str, status: int, word: str) -> None:
    done = kvmkit("cp", source, target)
    assert done.returncode == status
    assert word in done.stderr.splitlines()[-1]
    assert "Traceback" not in done.stderr


def archive(*members: tuple[str, bytes, str]) -> io.BytesIO:
    stream = io.BytesIO()
    with tarfile.open(mode="w", fileobj=stream) as tar:
        for name, kind, link in members:
            member = tarfile.TarInfo(name)
            member.type = kind
            member.linkname = link
            tar.addfile(member, io.BytesIO() if kind == tarfile.REGTYPE else None)
    stream.seek(0)
    return stream


@pytest.mark.parametrize(
    "members",
    [
        [("../out", tarfile.REGTYPE, "")],
        [("/tmp/kvmkit-out", tarfile.REGTYPE, "")],
        [("a/../../out", tarfile.REGTYPE, "")],
        [("hard", tarfile.LNKTYPE, "../secret")],
        [("hard", tarfile.LNKTYPE, "/etc/passwd")],
    ],
)
def test_a_hostile_archive_is_refused(tmp_path: Path, members) -> None:
    root = tmp_path / "root"
    root.mkdir()
    (tmp_path / "secret").write_text("")
    with pytest.raises(KvmkitError):
        unpack(archive(*members), root)
    assert sorted(os.listdir(tmp_path)) == ["root", "secret"]


def test_nothing_is_written_through_a_link(tmp_path: Path) -> None:
    root, outside = tmp_path / "root", tmp_path / "outside"
    root.mkdir()
    outside.mkdir()
    members = [("d", tarfile.SYMTYPE, str(outside)), ("d/file", tarfile.REGTYPE, "")]
    with pytest.raises((KvmkitError, FileExistsError)):
        unpack(archive(*members), root)
    assert os.listdir(outside) == []


def test_a_device_is_left_out(tmp_path: Path) -> None:
    assert len(unpack(archive(("null", tarfile.CHRTYPE, "")), tmp_path)) == 1
    assert os.listdir(tmp_path) == []


@pytest.mark.guest
def test_guest_check_looks_into_a_vm(kvmkit, web: str) -> None:
    done = kvmkit("guest", "check", "--json", web)
    assert done.returncode == 0, done.stderr
    rows = {row["id"]: row for row in json.loads(done.stdout)["rows"]}
    assert "module.virtio" in rows
    assert any("vsock: bound to vmw_vsock_virtio_transport" in row["text"] for row in rows.values())
