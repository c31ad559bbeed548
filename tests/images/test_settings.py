"""Container images' settings, images checked on use, and `image prune`."""

from __future__ import annotations

import gzip
import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from tests.vms.conftest import Kvmkit, caller

from kvmkit.errors import BadInput
from kvmkit.guest import bootstrap, images, library, oci, store
from kvmkit.guest.progress import Silent
from kvmkit.guest.store import Manifest
from kvmkit.manager import imagefiles


def layout(target: Path, config: object) -> None:
    """An OCI layout of one layer, whose only program is the one that tells what it was given."""
    layer = io.BytesIO()
    with tarfile.open(fileobj=layer, mode="w") as tar:
        for name in ("etc", "srv", "srv/app"):
            member = tarfile.TarInfo(name)
            member.type, member.mode = tarfile.DIRTYPE, 0o755
            tar.addfile(member)
        for name, text, mode in (("etc/passwd", "web:x:1234:1234::/srv:/bin/sh\n", 0o644),):
            member = tarfile.TarInfo(name)
            member.size, member.mode = len(text), mode
            tar.addfile(member, io.BytesIO(text.encode()))
        busybox = next((Path(each) for each in ("/usr/bin/busybox", "/bin/busybox") if Path(each).exists()), None)
        if busybox is None:
            pytest.skip("busybox-static is not installed")
        member = tarfile.TarInfo("bin/sh")
        member.size, member.mode = busybox.stat().st_size, 0o755
        tar.addfile(member, io.BytesIO(busybox.read_bytes()))

    def blob(data: bytes) -> dict:
        digest = hashlib.sha256(data).hexdigest()
        path = target / "blobs" / "sha256" / digest
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_bytes(data)
        return {"digest": f"sha256:{digest}", "size": len(data)}

    manifest = {
        "config": blob(json.dumps({"architecture": "amd64", "os": "linux", "config": config}).encode()),
        "layers": [blob(gzip.compress(layer.getvalue(), 1))],
    }
    (target / "index.json").write_text(json.dumps({"manifests": [blob(json.dumps(manifest).encode())]}))
    (target / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')


@pytest.mark.guest
def test_a_container_image_runs_as_it_says(kvmkit: Kvmkit, tmp_path: Path) -> None:
    told = "echo $GREETING; while read key one rest; do [ $key != Uid: ] || echo $one; done </proc/self/status; pwd"
    layout(
        tmp_path / "oci",
        {
            "Env": ["GREETING=hello you"],
            "Entrypoint": ["/bin/sh", "-c"],
            "Cmd": [f"{told}; read waiting"],
            "User": "web",
            "WorkingDir": "/srv/app",
        },
    )
    assert kvmkit("image", "pull", f"oci:{tmp_path}/oci", "--name", "contained").returncode == 0
    try:
        assert kvmkit("run", "contained", "--accel", "tcg").stdout == "hello you\n1234\n/srv/app\n"
        assert kvmkit("run", "-d", "--name", "inside", "contained", "--accel", "tcg").returncode == 0
        assert kvmkit("wait", "--ready", "inside").returncode == 0
        until = time.monotonic() + 60
        while "hello you\n1234\n/srv/app\n" not in (said := kvmkit("logs", "inside").stdout):
            assert time.monotonic() < until, said
        assert kvmkit("exec", "inside", "--", "sh", "-c", told).stdout == "hello you\n1234\n/srv/app\n"
        done = kvmkit("exec", "-u", "0", "-w", "/", "-e", "GREETING=bye", "inside", "--", "sh", "-c", told)
        assert done.stdout == "bye\n0\n/\n"
        command = ("--", "/bin/sh", "-c", f"{told}; exit 7")
        assert kvmkit("run", "-d", "--name", "told", "contained", "--accel", "tcg", *command).returncode == 0
        assert kvmkit("wait", "told").returncode == 7
        assert "hello you\n1234\n/srv/app\n" in kvmkit("logs", "told").stdout
    finally:
        kvmkit("rm", "-f", "inside", "told")
        kvmkit("image", "rm", "contained")


def made(name: str) -> Path:
    def fill(work: Path, progress: object) -> Manifest:
        for file in ("vmlinuz", "initrd", library.ROOT_DISK):
            (work / "image" / file).write_bytes(b"as it was made")
        return Manifest()

    library.make(name, fill, Silent())
    return library.root() / name


def test_what_was_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path))
    directory = made("one")
    needed = library.needed(directory)
    assert store.load(directory, needed) is not None
    later = (directory / store.MANIFEST).stat().st_mtime_ns + 1_000_000
    os.utime(directory / library.ROOT_DISK, ns=(later, later))
    assert store.load(directory, needed) is not None  # touched, and what it was
    (directory / library.ROOT_DISK).write_bytes(b"as it is not ")
    assert store.load(directory, needed) is None
    (directory / library.ROOT_DISK).write_bytes(b"as it is not!!")
    later = (directory / store.MANIFEST).stat().st_mtime_ns + 1_000_000
    os.utime(directory / library.ROOT_DISK, ns=(later, later))
    assert store.load(directory, needed) is None  # of the same size


@contextmanager
def kept(directory: Path) -> Iterator[None]:
    """What is in it can't be removed, not even by root."""
    file = directory / library.ROOT_DISK
    if os.geteuid():
        directory.chmod(0o500)
    elif not shutil.which("chattr") or subprocess.run(["chattr", "+i", file], capture_output=True).returncode:
        pytest.skip("no file can be made immutable here (chattr)")
    try:
        yield
    finally:
        for left in directory.parent.glob(f"*{directory.name}*"):
            if left.is_dir():
                left.chmod(0o700)
                if not os.geteuid():
                    subprocess.run(["chattr", "-i", left / library.ROOT_DISK], check=True)


def test_an_image_that_can_not_be_removed_is_told_of(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path))
    run = caller(tmp_path)
    directory = made("one")
    with kept(directory):
        done = run("image", "rm", "one")
        assert (done.returncode, done.stdout, done.stderr.count("\n")) == (1, "", 1), done
        (left,) = directory.parent.glob(".one.*")
        assert str(left) in done.stderr
        assert library.ROOT_DISK in done.stderr
        assert run("image", "ls", "-q").stdout == ""
        made("one")  # its name is free
    assert run("image", "rm", "one").returncode == 0
    assert run("image", "prune").stdout == f"{left}\n"
    assert not left.exists()


def test_prune_removes_what_is_replaced_and_half_made(tmp_path: Path) -> None:
    run = caller(tmp_path)
    base = tmp_path / "cache" / "images" / "debian"
    current = f"{images.directory_of('debian').name}"
    for name in (current, "2.1", ".2.1.999999999", f".2.1.{os.getpid()}"):
        (base / name).mkdir(parents=True)
        (base / name / "root.erofs").write_bytes(b"x")
    done = run("image", "prune")
    assert done.returncode == 0, done
    assert sorted(done.stdout.split()) == sorted(str(base / name) for name in ("2.1", ".2.1.999999999"))
    assert sorted(os.listdir(base)) == sorted([current, f".2.1.{os.getpid()}"])


def test_prune_tells_of_no_more_than_is_gone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path))
    base = tmp_path / "cache" / "images" / "debian"
    base.mkdir(parents=True)
    (tmp_path / "elsewhere").mkdir()
    (base / "2.1").symlink_to(tmp_path / "elsewhere")  # shutil.rmtree refuses it, also to root
    (base / ".2.1.999999999").symlink_to(tmp_path / "elsewhere")
    gone, kept = library.prune({"debian": base / "3"})
    assert not gone
    assert sorted(path.name for path in kept) == [".2.1.999999999", "2.1"]
    assert (base / "2.1").exists()


def test_trees_of_builds_that_were_killed_are_removed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", str(tmp_path))
    (tmp_path / "kvmkit-build-999999999-a" / "root").mkdir(parents=True)
    (tmp_path / "kvmkit-build-999999999-b").symlink_to("nowhere")
    (tmp_path / f"kvmkit-build-{os.getpid()}-c").mkdir()
    bootstrap._sweep()
    assert set(os.listdir(tmp_path)) == {"kvmkit-build-999999999-b", f"kvmkit-build-{os.getpid()}-c"}


@pytest.mark.parametrize(
    ("config", "message"),
    [
        ({"Env": 5}, "got `int` - at `$.Env`"),
        ("x", "got `str`"),
        ({"Cmd": "sh"}, "at `$.Cmd`"),
        ({"Entrypoint": [1]}, "at `$.Entrypoint[0]`"),
        ({"User": {}}, "at `$.User`"),
    ],
)
def test_a_container_image_with_impossible_settings_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, config: object, message: str
) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path))
    layout(tmp_path / "oci", config)
    with pytest.raises(BadInput) as caught:
        imagefiles.pull(f"oci:{tmp_path}/oci", "contained", Silent())
    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
    assert [path.name for path in library.root().iterdir() if not path.name.endswith(".lock")] == []


@pytest.mark.parametrize(
    "manifest",
    [{"config": 5, "layers": []}, {"layers": []}, {"manifests": [7]}, {"manifests": [{"platform": 1}]}],
)
def test_an_oci_layout_that_is_none_is_refused(tmp_path: Path, manifest: dict) -> None:
    (tmp_path / "oci-layout").write_text("{}")
    data = json.dumps(manifest).encode()
    digest = hashlib.sha256(data).hexdigest()
    (tmp_path / "blobs" / "sha256").mkdir(parents=True)
    (tmp_path / "blobs" / "sha256" / digest).write_bytes(data)
    kind = "application/vnd.oci.image." + ("index" if "manifests" in manifest else "manifest") + ".v1+json"
    entry = {"digest": f"sha256:{digest}", "mediaType": kind}
    (tmp_path / "index.json").write_text(json.dumps({"manifests": [entry]}))
    made = oci.Layout(tmp_path)
    with pytest.raises(BadInput, match="in it"):
        made.config(made.manifest())
