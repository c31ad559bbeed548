"""Which format a disk is taken for, and what it may be based on."""

from __future__ import annotations

import shutil
import struct
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.block.formats import decide, layers, parse_qcow2, read_qcow2
from kvmkit.errors import BadInput
from kvmkit.machine import parse_disk
from kvmkit.vhost_user import storage

needs_qemu_img = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed (qemu-utils)")


def image(path: Path, *options: str, format: str = "qcow2", size: str = "1M") -> Path:
    subprocess.run(["qemu-img", "create", "-q", "-f", format, *options, str(path), size], check=True)
    return path


@pytest.fixture
def own(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path / "kvmkit"))
    directory = tmp_path / "disks"
    directory.mkdir()
    return directory


@needs_qemu_img
def test_name_and_content_have_to_agree(own: Path) -> None:
    qcow2 = image(own / "a.qcow2")
    assert decide(str(qcow2)) == "qcow2"
    assert decide(str(qcow2), "raw") == "raw"
    disguised = own / "b.raw"
    disguised.write_bytes(qcow2.read_bytes())
    with pytest.raises(BadInput, match="format=qcow2 if that is what you made, or format=raw if a guest wrote it"):
        decide(str(disguised))
    assert decide(str(disguised), "qcow2") == "qcow2"
    named = own / "c.qcow2"
    named.write_bytes(bytes(4096))
    with pytest.raises(BadInput, match="holds none"):
        decide(str(named))
    with pytest.raises(BadInput, match="format=vmdk: it holds a qcow2 image"):
        decide(str(qcow2), "vmdk")
    assert decide(str(own / "none.raw")) == "raw"


@needs_qemu_img
def test_a_base_is_never_guessed(own: Path) -> None:
    image(own / "base.raw", format="raw")
    top = image(own / "top.qcow2", "-b", "base.raw", "-F", "raw")
    assert [(Path(layer.path).name, layer.format) for layer in layers(str(top), "qcow2")] == [
        ("top.qcow2", "qcow2"),
        ("base.raw", "raw"),
    ]
    secret = own.parent / "secret"
    secret.write_bytes(bytes(1 << 20))
    subprocess.run(["qemu-img", "rebase", "-u", "-b", "../secret", "-F", "raw", str(top)], check=True)
    with pytest.raises(BadInput, match=f"add backing={secret} if the guest may read that"):
        layers(str(top), "qcow2")
    assert layers(str(top), "qcow2", str(secret))[1].path == str(secret)
    (own / "link.raw").symlink_to(secret)
    subprocess.run(["qemu-img", "rebase", "-u", "-b", "link.raw", "-F", "raw", str(top)], check=True)
    with pytest.raises(BadInput, match="in another directory"):
        layers(str(top), "qcow2")
    subprocess.run(["qemu-img", "rebase", "-u", "-b", "top.qcow2", "-F", "qcow2", str(top)], check=True)
    with pytest.raises(BadInput, match="or on itself"):
        layers(str(top), "qcow2")
    subprocess.run(["qemu-img", "rebase", "-u", "-b", "nbd://host/x", "-F", "raw", str(top)], check=True)
    with pytest.raises(BadInput, match="no plain path"):
        layers(str(top), "qcow2")


@needs_qemu_img
def test_what_is_refused(own: Path) -> None:
    other = image(own / "other.qcow2", "-o", f"data_file={own}/data,data_file_raw=on")
    with pytest.raises(BadInput, match="keeps its data in another file"):
        read_qcow2(str(other))
    plain = image(own / "plain.qcow2")
    head = bytearray(plain.read_bytes()[:65536])
    assert parse_qcow2(bytes(head)).size == 1 << 20
    struct.pack_into(">QI", head, 8, 512, 6)
    head[512:518] = b"base.x"
    plain.write_bytes(head)
    with pytest.raises(BadInput, match="does not say in which format"):
        layers(str(plain), "qcow2")
    for text, why in (
        (f"{own}/none.qcow2", "none"),
        (f"{own}/none.qcow2,format=qcow", "no option"),
        (f"{own}/none.raw,key=/x", "not raw"),
    ):
        with pytest.raises(BadInput, match=why):
            parse_disk(text).check()


@given(st.binary(max_size=300), st.integers(0, 4), st.integers(0, 1 << 20), st.integers(0, 5000))
def test_any_header_is_read_or_refused(rest: bytes, version: int, at: int, size: int) -> None:
    data = b"QFI\xfb" + struct.pack(">IQI", version, at, size) + rest
    try:
        header = parse_qcow2(data)
    except ValueError:
        return
    assert len(header.backing) <= 1023


@pytest.mark.parametrize(
    ("path", "place"),
    [
        ("nbd://host/a%20b", {"driver": "nbd", "server": {"type": "inet", "host": "host", "port": "10809"}}),
        ("nbd+unix:///x?socket=/run/s", {"driver": "nbd", "server": {"type": "unix", "path": "/run/s"}}),
        ("iscsi://h:1/iqn.x/2", {"driver": "iscsi", "portal": "h:1", "target": "iqn.x", "lun": 2}),
        ("rbd://pool/name", {"driver": "rbd", "pool": "pool", "image": "name"}),
    ],
)
def test_disks_elsewhere(path: str, place: dict[str, object]) -> None:
    found = storage._place(path)
    assert {key: found[key] for key in place} == place
    assert decide(path) == "raw"


@pytest.mark.parametrize("path", ["nbd+unix:///x", "iscsi://h/x", "rbd://p", "nbd:///x", "nbd://h:99999999/x"])
def test_disks_elsewhere_that_can_not_be(path: str) -> None:
    with pytest.raises(BadInput, match="disk "):
        storage._place(path)


def test_a_helper_that_is_not_installed(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    from kvmkit import packages
    from kvmkit.errors import HostError
    from kvmkit.vhost_user import virtiofsd

    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(virtiofsd, "PLACES", ())
    for release, command in (
        ({"ID": "debian", "VERSION_ID": "12"}, "sudo apt-get install qemu-system-common"),
        ({"ID": "ubuntu", "ID_LIKE": "debian", "VERSION_ID": "24.04"}, "sudo apt-get install virtiofsd"),
        ({"ID": "fedora"}, "sudo dnf install virtiofsd"),
        ({"ID": "nixos"}, "install your distribution's package virtiofsd"),
    ):
        monkeypatch.setattr(packages, "release", lambda text, release=release: release)
        with pytest.raises(HostError, match=f"not installed: {command}$"):
            virtiofsd.program()
