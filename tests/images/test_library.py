"""`kvmkit image` and `kvmkit disk` as a user calls them."""

from __future__ import annotations

import hashlib
import io
import json
import os
import shutil
import subprocess
import tarfile
from pathlib import Path

import pytest
from tests.machine.bootable import boot_sector
from tests.vms.conftest import Kvmkit, caller

from kvmkit.errors import BadInput
from kvmkit.firmware import SEABIOS
from kvmkit.manager import imagespec

GUEST = pytest.mark.guest
QEMU_IMG = pytest.mark.skipif(not shutil.which("qemu-img"), reason="qemu-img is not installed (qemu-utils)")


@pytest.fixture
def empty(tmp_path: Path) -> Kvmkit:
    """kvmkit in a home in which nothing was ever made."""
    return caller(tmp_path / "home")


def one_line(done: subprocess.CompletedProcess[str], *words: str, status: int = 2) -> None:
    assert (done.returncode, done.stdout, done.stderr.count("\n")) == (status, "", 1), done
    assert all(word in done.stderr for word in words), done


@GUEST
def test_an_image_is_built_and_known_again(kvmkit: Kvmkit, home: Path, tmp_path: Path) -> None:
    (tmp_path / "tree" / "deep").mkdir(parents=True)
    (tmp_path / "tree" / "deep" / "tool").write_text("#!/bin/sh\necho tool $1\n")
    (tmp_path / "tree" / "deep" / "tool").chmod(0o755)
    spec = tmp_path / "work.toml"
    spec.write_text(
        'run = ["useradd -m dev", "rm -r /etc/issue /etc/default; mkdir /etc/default; echo new >/etc/default/new"]\n'
        'memory = "256M"\n[files]\n"/opt/tree" = { path = "tree" }\n"/etc/told" = { text = "é\\n", mode = "0600" }\n'
    )
    done = kvmkit("image", "build", str(spec))
    assert (done.returncode, done.stdout) == (0, "work\n"), done
    made = (home / "data" / "images" / "work" / "image.json").read_bytes()
    assert kvmkit("image", "build", str(spec)).returncode == 0
    assert (home / "data" / "images" / "work" / "image.json").read_bytes() == made
    script = "/opt/tree/deep/tool 7; cat /etc/told; stat -c %a /etc/told; ls /etc/default; stat -c %U /home/dev;"
    script += "ls /etc/issue"
    done = kvmkit("run", "work", "--accel", "tcg", "--", "sh", "-c", script)
    assert (done.returncode, done.stdout) == (2, "tool 7\né\n600\nnew\ndev\n"), done
    assert [path for path in (home / "data" / "machines").iterdir() if path.name.startswith("vm")] == []
    spec.write_text('memory = "256M"\nrun = ["echo so far", "echo no such thing; exit 3"]\n')
    done = kvmkit("image", "build", str(spec))
    assert done.returncode == 1
    assert "running echo no such thing; exit 3: failed: no such thing" in done.stderr
    assert (home / "data" / "images" / "work" / "image.json").read_bytes() == made
    assert [path.name for path in (home / "data" / "images").iterdir() if path.name.startswith(".")] == []
    assert kvmkit("image", "rm", "work").returncode == 0
    one_line(kvmkit("run", "work"), "no guest image 'work'")


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ('base = "nothing"\n', "{}:1: base: no guest image 'nothing'"),
        ('base = "tiny"\n', "{}:1: base: the image tiny has no root disk"),
        ('\npackages = ["ok", "x; rm"]\n', "{}:2: packages: 'x; rm'"),
        ("runs = []\n", "{}:1: runs: there is no such key; did you mean run?"),
        ('run = ["true", 3]\n', "{}:1: run: expected `str`, got `int`"),
        ('[files]\n"/a" = { text = "", mode = "9" }\n', "mode '9'"),
        ('[files]\n"a" = { text = "" }\n', "from / on"),
        ('[files]\n"/a" = { path = "absent" }\n', "absent: No such file"),
        ('[files]\n"/a" = {}\n', "either path or text"),
        ('name = "Über"\n', "{}:1: name: 'Über' can't be"),
        ("= 3\n", "{}:1: no TOML"),
    ],
)
def test_bad_specs(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, text: str, words: str) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path / "home"))
    spec = tmp_path / "x.toml"
    spec.write_text(text)
    with pytest.raises(BadInput) as caught:
        imagespec.read(str(spec))
    assert words.format(spec) in str(caught.value)
    assert "\n" not in str(caught.value)


class Layout:
    """An OCI layout with one image."""

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        (directory / "blobs" / "sha256").mkdir(parents=True)
        (directory / "oci-layout").write_text('{"imageLayoutVersion": "1.0.0"}')

    def blob(self, data: bytes, kind: str) -> dict[str, object]:
        digest = hashlib.sha256(data).hexdigest()
        (self.directory / "blobs" / "sha256" / digest).write_bytes(data)
        return {"mediaType": kind, "digest": f"sha256:{digest}", "size": len(data)}

    def image(self, *layers: bytes, command: list[str]) -> None:
        kind = "application/vnd.oci.image."
        found = [self.blob(layer, f"{kind}layer.v1.tar+gzip") for layer in layers]
        config = self.blob(json.dumps({"config": {"Cmd": command}}).encode(), f"{kind}config.v1+json")
        manifest = {"schemaVersion": 2, "config": config, "layers": found}
        entry = self.blob(json.dumps(manifest).encode(), f"{kind}manifest.v1+json")
        entry["annotations"] = {"org.opencontainers.image.ref.name": "one"}
        (self.directory / "index.json").write_text(json.dumps({"schemaVersion": 2, "manifests": [entry]}))


def layer(entries: dict[str, bytes | str]) -> bytes:
    """A gzipped tar: bytes are a program, a text is a link's target."""
    out = io.BytesIO()
    with tarfile.open(fileobj=out, mode="w:gz") as tar:
        for name, what in entries.items():
            member = tarfile.TarInfo(name)
            member.mode = 0o755
            if isinstance(what, str):
                member.type, member.linkname = tarfile.SYMTYPE, what
                tar.addfile(member)
            else:
                member.size = len(what)
                tar.addfile(member, io.BytesIO(what))
    return out.getvalue()


@GUEST
def test_a_container_image_becomes_a_vm(kvmkit: Kvmkit, tmp_path: Path) -> None:
    busybox = shutil.which("busybox")
    if busybox is None:
        pytest.skip("busybox is not installed (busybox-static)")
    made = Layout(tmp_path / "layout")
    tools = {f"bin/{name}": "busybox" for name in ("sh", "ls", "cat", "id")}
    first = layer(
        {"bin/busybox": Path(busybox).read_bytes(), **tools, "etc/gone": b"", "etc/passwd": b"root:x:0:0::/:/bin/sh\n"}
    )
    made.image(first, layer({"etc/.wh.gone": b"", "etc/new": b"2\n"}), command=["/bin/sh"])
    done = kvmkit("image", "pull", f"oci:{made.directory}:one", "--name", "box")
    assert (done.returncode, done.stdout) == (0, "box\n"), done
    done = kvmkit(
        "run", "box", "--accel", "tcg", "--", "sh", "-c", "cat /etc/new; ls /etc/gone; id -u; cat /etc/hostname"
    )
    assert done.stdout == "2\n0\nbox\n", done
    assert json.loads(kvmkit("image", "inspect", "box").stdout)["command"] == ["/bin/sh"]
    assert kvmkit("image", "inspect", "--check", "box").returncode == 0
    done = kvmkit("image", "export", "box", str(tmp_path / "box.tar"), "--format", "tar")
    assert done.returncode == 0, done
    with tarfile.open(tmp_path / "box.tar") as tar:
        assert "./etc/new" in tar.getnames()
        assert "./etc/gone" not in tar.getnames()
    one_line(kvmkit("image", "pull", f"oci:{made.directory}:one", "--name", "box"), "there is an image box already")
    blobs = sorted((made.directory / "blobs" / "sha256").iterdir(), key=lambda path: path.stat().st_size)
    data = bytearray(blobs[-1].read_bytes())
    data[1000] ^= 1
    blobs[-1].write_bytes(data)
    one_line(kvmkit("image", "pull", str(made.directory), "--name", "other"), "damaged", status=1)
    assert kvmkit("image", "rm", "box").returncode == 0
    assert "other" not in kvmkit("image", "ls", "-q").stdout


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (("pull", "oci:/nowhere"), "no OCI layout"),
        (("pull", "nowhere"), "no directory, nor a reference"),
        (("import", "/nowhere"), "no such file"),
        (("rm", "debain"), "did you mean debian?"),
        (("rm", "tiny"), "not built yet"),
        (("export", "tiny2", "/tmp/x"), "no guest image"),
        (("build", "/nowhere.toml"), "No such file"),
    ],
)
def test_what_is_not_there(empty: Kvmkit, words: tuple[str, ...], expected: str) -> None:
    one_line(empty("image", *words), expected)


@QEMU_IMG
def test_a_disk_is_imported_whole_or_not_at_all(empty: Kvmkit, tmp_path: Path) -> None:
    raw, disk = tmp_path / "raw", tmp_path / "System 1.qcow2"
    raw.write_bytes(os.urandom(1 << 20) + bytes(7 << 20))
    subprocess.run(["qemu-img", "convert", "-O", "qcow2", str(raw), str(disk)], check=True)
    done = empty("image", "import", str(disk))
    assert (done.returncode, done.stdout) == (0, "system-1\n"), done
    stored = tmp_path / "home" / "data" / "images" / "system-1" / "disk.raw"
    assert stored.read_bytes() == raw.read_bytes()
    for form in ("raw", "qcow2"):
        assert empty("image", "export", "system-1", str(tmp_path / f"out.{form}"), "--format", form).returncode == 0
    assert (tmp_path / "out.raw").read_bytes() == raw.read_bytes()
    over = tmp_path / "over.qcow2"
    subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", "-b", "/etc/passwd", "-F", "raw", str(over)], check=True)
    one_line(empty("image", "import", str(over)), "the rest is in /etc/passwd")
    disk.write_bytes(disk.read_bytes()[:70000])
    one_line(empty("image", "import", str(disk), "--name", "cut"), "qemu-img", status=1)
    assert [path.name for path in stored.parent.parent.iterdir() if path.name.startswith(".")] == []
    listed = json.loads(empty("image", "ls", "--json").stdout)
    assert [(each["name"], each["kind"]) for each in listed] == [("system-1", "disk")]


COUNT = """
    mov ah, 0x48; mov dl, 0x80; mov si, offset drive
    int 0x13
    jc leave
    mov cx, 8
1:  rol dword ptr [drive + 16], 4   # its sectors
    mov al, [drive + 16]; and al, 15
    add al, '0'; cmp al, '9'; jbe 2f
    add al, 'a' - '0' - 10
2:  mov ah, 0x0e; mov bx, 7; push cx
    int 0x10
    pop cx
    loop 1b
    jmp leave
drive: .word 26; .fill 24
"""


@GUEST
def test_a_whole_disk_is_as_large_as_is_asked(kvmkit: Kvmkit, home: Path, tmp_path: Path) -> None:
    """Of a VM that is thrown away, and of one that is kept: what its boot loader is told by the BIOS."""
    if not any(Path(path).exists() for path in SEABIOS) or not shutil.which("qemu-img"):
        pytest.skip("seabios or qemu-img is not installed")
    disk = boot_sector(tmp_path, COUNT)
    with disk.open("r+b") as file:
        file.truncate(20 << 20)
    assert kvmkit("image", "import", str(disk), "--name", "sized").returncode == 0
    vm = ("sized", "--accel", "tcg", "--memory", "64M", "--debug-exit")
    try:
        for size, sectors in ((), 20 << 11), (("--root-size", "1G"), 1 << 21):
            done = kvmkit("run", *vm, *size)
            assert f"{sectors:08x}" in done.stdout, done
        assert kvmkit("create", "--name", "sized", *vm, "--root-size", "32M").returncode == 0
        for size in (32, 48):
            assert kvmkit("set", "sized", "--root-size", f"{size}M").returncode == 0
            kvmkit("start", "sized")
            kvmkit("wait", "sized")
            assert f"{size << 11:08x}" in kvmkit("logs", "sized").stdout
            assert (home / "data" / "machines" / "sized" / "disk.raw").stat().st_size == size << 20
        for verb in ("run", "create"):
            one_line(kvmkit(verb, *vm, "--root-size", "16M"), "has 20 MiB")
    finally:
        kvmkit("rm", "-f", "sized")
        kvmkit("image", "rm", "sized")


def test_a_seed_for_a_cloud_image(tmp_path: Path) -> None:
    pycdlib = pytest.importorskip("pycdlib")
    from kvmkit.manager import seed

    seed.write(tmp_path / "seed.iso", "web", seed.user_data(None, "secret"))
    disc = pycdlib.PyCdlib()
    disc.open(str(tmp_path / "seed.iso"))
    assert disc.pvd.volume_identifier.decode().strip() == "cidata"
    out = io.BytesIO()
    disc.get_file_from_iso_fp(out, rr_path="/user-data")
    assert out.getvalue().startswith(b"#cloud-config\npassword: secret\n")
    assert b'\nlocale: "no"\n' in out.getvalue()  # a bare Debian has not en_US.UTF-8, which cloud-init would set
    disc.close()


def test_a_raw_disk_is_made_and_made_larger(empty: Kvmkit, tmp_path: Path) -> None:
    disk = tmp_path / "data.raw"
    assert empty("disk", "create", str(disk), "10M").returncode == 0
    assert (disk.stat().st_size, disk.stat().st_blocks) == (10 << 20, 0)
    one_line(empty("disk", "create", str(disk), "10M"), "is there already")
    assert empty("disk", "resize", str(disk), "+10M").returncode == 0
    one_line(empty("disk", "resize", str(disk), "1M"), "--shrink")
    assert json.loads(empty("disk", "info", "--json", str(disk)).stdout)["size"] == 20 << 20
    assert empty("disk", "check", str(disk)).returncode == 0
    one_line(empty("disk", "commit", str(disk)), "is no overlay")
    one_line(empty("disk", "info", str(tmp_path)), "neither a file")
    one_line(empty("disk", "create", str(tmp_path / "x")), "SIZE is missing")


@QEMU_IMG
def test_an_overlay_is_committed(empty: Kvmkit, tmp_path: Path) -> None:
    base, over = tmp_path / "base.raw", tmp_path / "over.qcow2"
    assert empty("disk", "create", str(base), "8M").returncode == 0
    assert empty("disk", "create", str(over), "--base", str(base)).returncode == 0
    subprocess.run(["qemu-io", "-f", "qcow2", "-c", "write -P 7 4096 512", str(over)], check=True, capture_output=True)
    assert base.read_bytes() == bytes(8 << 20)
    assert empty("disk", "check", str(over)).returncode == 0
    assert empty("disk", "commit", str(over)).stdout == f"{base}\n"
    assert base.read_bytes()[4096:4608] == b"\7" * 512


@GUEST
def test_a_disk_in_use_names_its_vm_and_a_full_host_is_said(tmp_path: Path, home: Path, kvmkit: Kvmkit) -> None:
    disk, other = tmp_path / "data.raw", tmp_path / "data.qcow2"
    disk.write_bytes(bytes(1 << 20))
    vm = ("run", "-d", "tiny", "--memory", "128M", "--accel", "tcg")
    more = ("--disk", str(other)) if shutil.which("qemu-storage-daemon") and shutil.which("qemu-img") else ()
    if more:
        assert kvmkit("disk", "create", str(other), "1M").returncode == 0
    assert kvmkit(*vm, "--name", "holder", "--disk", str(disk), *more).returncode == 0
    if more:
        done = kvmkit(*vm, *more)
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
        assert "in use by the VM holder" in done.stderr
        for words in (("resize", str(other), "2M"), ("check", str(other))):
            one_line(kvmkit("disk", *words), "in use by the VM holder")
        assert "in use by the VM holder" in kvmkit("disk", "info", str(other)).stdout
    one_line(kvmkit(*vm, "--disk", str(disk)), "in use by the VM holder")
    one_line(kvmkit("disk", "resize", str(disk), "2M"), "in use by the VM holder")
    assert "in use by the VM holder" in kvmkit("disk", "info", str(disk)).stdout
    assert kvmkit("rm", "-f", "holder").returncode == 0
    assert kvmkit("disk", "resize", str(disk), "2M").returncode == 0


@GUEST
@pytest.mark.root
@pytest.mark.parametrize("form", ["raw", "qcow2"])
def test_a_full_host_is_an_error_that_the_guest_sees(tmp_path: Path, kvmkit: Kvmkit, form: str) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    if form == "qcow2" and not (shutil.which("qemu-storage-daemon") and shutil.which("qemu-img")):
        pytest.skip("qemu-storage-daemon or qemu-img is not installed")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "none", str(small)], check=False).returncode:
        pytest.skip("can't mount here")
    try:
        disk = small / f"disk.{form}"
        assert kvmkit("disk", "create", str(disk), "64M").returncode == 0
        script = "dd if=/dev/zero of=/dev/vda bs=1M count=16 conv=fsync && echo wrote;"
        script += "dd if=/dev/vda of=/dev/null bs=512 count=1 && echo read;"
        script += "sleep 3"  # qcow2: its file system is looked at every two seconds
        done = kvmkit(
            "run", "tiny", "--accel", "tcg", "--memory", "128M", "--disk", str(disk), "--", "sh", "-c", script
        )
        assert done.stdout == "read\n", done
        assert done.returncode == 0
        why = {"raw": "No space left on device", "qcow2": "no space is left on the host's file system"}[form]
        assert why in done.stderr
        assert f"disk {disk}" in kvmkit("events").stdout
    finally:
        subprocess.run(["umount", str(small)], check=True)
