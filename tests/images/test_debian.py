"""The default image as a user has it: a real Debian, whose VMs share a disk and not their changes."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from tests.chaos.account import processes
from tests.vms.conftest import Kvmkit, caller

pytestmark = pytest.mark.guest
ACCEL = ("--accel", "tcg")
DEBIAN = ("debian", *ACCEL)


def test_the_default_is_a_debian_with_bash_python_and_apt(kvmkit: Kvmkit, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("KVMKIT_IMAGE")
    script = (
        "set -e; . /etc/os-release; echo $ID; bash --version | head -n 1; python3 -c 'import json, ssl; print(6 * 7)';"
        "apt-get --version | head -n 1; ip -br link show lo; ps -e | grep -c kthreadd; id -u; hostname;"
        "stat -c %a /tmp; modprobe -n loop; dpkg --audit; find /usr/share/man -name '*.gz' | wc -l"
    )
    done = kvmkit("run", *ACCEL, "--", "bash", "-c", script)
    assert done.returncode == 0, done
    lines = done.stdout.splitlines()
    assert lines[0] == "debian"
    assert lines[1].startswith("GNU bash")
    assert lines[2] == "42"
    assert lines[3].startswith(("apt 2.", "apt 3."))
    assert lines[5:] == ["1", "0", "debian", "1777", "0"]


def test_disks_keep_their_names_and_the_root_disk_its_size(kvmkit: Kvmkit, tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(b"first" + bytes((1 << 20) - 5))
    script = "head -c 5 /dev/vda; echo new >/etc/motd; cat /etc/motd; df -k / | tail -n 1 | awk '{ print $2 }'"
    more = ("--disk", f"{disk},ro", "--rng", "--transport", "pci", "--root-size", "100M")
    done = kvmkit("run", *DEBIAN, *more, "--", "sh", "-c", script)
    assert done.returncode == 0, done
    words = done.stdout.split()
    assert words[0] == "firstnew"
    assert 60_000 < int(words[1]) < 102_400


def test_a_root_disk_grows(kvmkit: Kvmkit) -> None:
    """While its VM runs, while it does not, and before it ever did; its file system with it."""

    def size() -> int:
        return int(kvmkit("exec", "grown", "sh", "-c", "df -m / | tail -n 1 | awk '{ print $2 }'").stdout)

    assert kvmkit("create", "--name", "grown", "--memory", "192M", *DEBIAN).returncode == 0
    assert kvmkit("set", "grown", "--root-size", "100M").stdout == f"root disk: {100 << 20} bytes\n"
    assert kvmkit("start", "--wait", "grown").returncode == 0
    assert 60 < size() <= 100
    assert kvmkit("set", "grown", "--root-size", "200M").returncode == 0
    until = time.monotonic() + 30
    while size() <= 150:
        assert time.monotonic() < until
    assert "smaller than it is" in kvmkit("set", "grown", "--root-size", "64M").stderr
    (told,) = json.loads(kvmkit("inspect", "grown").stdout)
    assert kvmkit("set", "grown", "--disk", "0,iops=5000").returncode == 0
    assert json.loads(kvmkit("inspect", "grown").stdout)[0]["spec"] == told["spec"]  # a rate is no size
    assert kvmkit("kill", "grown").returncode == 0
    assert "smaller than it is" in kvmkit("set", "grown", "--root-size", "64M").stderr
    assert kvmkit("set", "grown", "--root-size", "300M").returncode == 0
    assert kvmkit("start", "--wait", "grown").returncode == 0
    assert size() > 250
    (told,) = json.loads(kvmkit("inspect", "grown").stdout)
    assert told["spec"]["root_size"] == f"{300 << 10}K"
    assert kvmkit("rm", "-f", "grown").returncode == 0


def test_a_renamed_vm_finds_its_disk_when_its_guest_resets(kvmkit: Kvmkit) -> None:
    assert kvmkit("create", "--name", "old", "--memory", "192M", *DEBIAN).returncode == 0
    assert kvmkit("start", "--wait", "old").returncode == 0
    assert kvmkit("exec", "old", "sh", "-c", "echo mine >/root/file; sync").returncode == 0
    assert kvmkit("rename", "old", "new").returncode == 0
    kvmkit("exec", "new", "sh", "-c", "echo b >/proc/sysrq-trigger")
    until = time.monotonic() + 60
    while (done := kvmkit("exec", "new", "cat", "/proc/uptime", "/root/file")).returncode or not done.stdout:
        assert time.monotonic() < until, done
    assert done.stdout.endswith("mine\n")
    (told,) = json.loads(kvmkit("inspect", "new").stdout)
    assert told["state"] == "running", told
    assert kvmkit("rm", "-f", "new").returncode == 0


def test_vms_share_the_base_and_keep_their_own_changes(debian: Path, tmp_path: Path) -> None:
    """Each stays with the image it was begun with, also when that has gone from the cache."""
    home = tmp_path / "home"
    (home / "cache").mkdir(parents=True)
    images = home / "cache" / "images"
    images.symlink_to(debian.parent.parent)
    run = caller(home)
    machines = home / "data" / "machines"
    for name in ("one", "two"):
        assert run("run", "-d", "--name", name, "--memory", "192M", *DEBIAN).returncode == 0
    for name in ("one", "two"):
        script = f"test ! -e /root/mine && echo {name} >/root/mine && rm /etc/issue && echo {name} >>/etc/profile"
        done = run("exec", name, "--", "sh", "-c", script)
        assert done.returncode == 0, done
    bases = {os.stat(machines / name / "root" / "root.erofs").st_ino for name in ("one", "two")}
    if os.stat(machines).st_dev == debian.stat().st_dev:
        assert bases == {(debian / "root.erofs").stat().st_ino}
    for name in ("one", "two"):
        assert run("stop", name).returncode == 0
        check_file_system(machines / name / "layer.raw")
        assert os.stat(machines / name / "layer.raw").st_blocks * 512 < 32 << 20
    images.unlink()
    images.mkdir()
    (images / "agent").symlink_to(debian.parent.parent / "agent")
    assert run("start", "--wait", "one").returncode == 0
    done = run("exec", "one", "--", "sh", "-c", "cat /root/mine; tail -n 1 /etc/profile; ls /etc/issue")
    assert (done.returncode, done.stdout) == (2, "one\none\n")
    assert run("rm", "-f", "one", "two").returncode == 0
    assert list(machines.iterdir()) == []


def check_file_system(path: Path) -> None:
    program = shutil.which("e2fsck") or shutil.which("e2fsck", path="/sbin:/usr/sbin")
    if program is not None:
        done = subprocess.run([program, "-fn", str(path)], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stdout


@pytest.mark.parametrize("size", ["1M", "big", "99999T"])
def test_a_root_disk_that_cannot_be(kvmkit: Kvmkit, size: str) -> None:
    done = kvmkit("run", "debian", "--root-size", size, "--", "true")
    assert (done.returncode, done.stderr.count("\n")) == (2, 1)


@pytest.mark.parametrize("number", [signal.SIGKILL, signal.SIGINT, signal.SIGTERM])
def test_a_build_that_is_ended_leaves_nothing(debian: Path, tmp_path: Path, number: signal.Signals) -> None:
    """A program in mmdebstrap's place, which makes what it makes, and ends as it does."""
    tools = tmp_path / "bin"
    tools.mkdir()
    tool = tools / "mmdebstrap"
    tool.write_text(
        "#!/bin/sh\ntrap 'rm -rf $TMPDIR/mmdebstrap.x; exit 1' TERM  # as it does\nmkdir $TMPDIR/mmdebstrap.x\n"
        f"echo $TMPDIR >{tmp_path}/started.new; mv {tmp_path}/started.new {tmp_path}/started\n"
        "echo 'I: running apt-get update...' >&2\nwhile :; do sleep 0.1; done\n"
    )
    tool.chmod(0o755)
    home = tmp_path / "home"
    environment = {**os.environ, "PATH": f"{tools}:{os.environ['PATH']}", "KVMKIT_HOME": str(home)}
    code = "import tests.images.quick; from kvmkit.guest.images import ensure; ensure('debian')"
    process = subprocess.Popen([sys.executable, "-c", code], env=environment, stderr=subprocess.DEVNULL)
    until = time.monotonic() + 60
    while not (tmp_path / "started").exists():
        assert process.poll() is None
        assert time.monotonic() < until
        time.sleep(0.02)
    scratch = (tmp_path / "started").read_text().strip()
    process.send_signal(number)
    assert process.wait(30) != 0
    while processes(home) or os.path.exists(scratch):
        assert time.monotonic() < until
        time.sleep(0.02)
    while [path.name for path in (home / "cache" / "images" / "debian").iterdir() if path.suffix != ".lock"]:
        assert time.monotonic() < until
        time.sleep(0.02)
