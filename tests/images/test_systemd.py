"""The image `debian-systemd`, and ssh over vsock. It is booted where it is built: building it takes too long here."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vms.conftest import Kvmkit

from kvmkit.guest import images, systemd
from kvmkit.guest.disk.tree import Tree
from kvmkit.manager import seed

needs_ssh = pytest.mark.skipif(not shutil.which("ssh"), reason="ssh is not installed (openssh-client)")


def test_each_vm_makes_its_own_host_key() -> None:
    tree = Tree()
    for name in ("ssh_host_rsa_key", "ssh_host_ed25519_key.pub"):
        tree.file(f"etc/ssh/{name}", b"everybody's")
    systemd.add_files(tree)
    assert not [path for path, _ in tree.walk() if b"ssh_host" in path]
    assert tree.get(b"etc/systemd/system/sockets.target.wants/kvmkit-ssh.socket") is not None


@needs_ssh
@pytest.mark.guest
def test_ssh_tells_of_a_guest_without_sshd(kvmkit: Kvmkit) -> None:
    assert kvmkit("ssh", "nobody").returncode == 2
    try:
        assert kvmkit("run", "-d", "--name", "bare", "tiny", "--accel", "tcg", "--memory", "96M").returncode == 0
        done = kvmkit("ssh", "bare", "--", "true")
        assert (done.returncode, done.stderr.count("\n")) == (1, 1), done
        assert "no sshd" in done.stderr
        kvmkit("kill", "bare")
        done = kvmkit("ssh", "bare", "--", "true")
        assert (done.returncode, "is not running" in done.stderr) == (1, True), done
    finally:
        kvmkit("rm", "-f", "bare")


def needs_image() -> None:
    if not (images.directory_of("debian-systemd") / images.ROOT_DISK).exists():
        pytest.skip("the image debian-systemd is not built (kvmkit run debian-systemd)")


@pytest.fixture(scope="module")
def booted(kvmkit: Kvmkit) -> Iterator[str]:
    needs_image()
    name = "systemd"
    port = ("--console-port", "org.qemu.guest_agent.0")
    done = kvmkit("run", "-d", "--name", name, "debian-systemd", "--accel", "tcg", "--memory", "1G", *port)
    assert done.returncode == 0, done
    yield name
    kvmkit("rm", "-f", name)


@needs_ssh
@pytest.mark.guest
@pytest.mark.timeout(300)
def test_systemd_runs_it_and_ssh_comes_in(kvmkit: Kvmkit, booted: str, home: Path) -> None:
    done = kvmkit("exec", booted, "--", "systemctl", "is-system-running", "--wait", timeout=200)
    assert done.stdout == "running\n", done
    done = kvmkit("ssh", booted, "--", "read line; echo $line; exit 7", input="by ssh\n")
    assert (done.returncode, done.stdout) == (7, "by ssh\n"), done
    noted = (home / "data" / "machines" / booted / "known_hosts").read_text()
    assert noted == f"guest {' '.join(kvmkit('exec', booted, 'cat', KEY).stdout.split()[:2])}\n"
    assert kvmkit("guest", "agent", booted, "--", "cat", "/proc/1/comm").stdout == "systemd\n"
    assert kvmkit("stop", booted).returncode == 0
    layer = home / "data" / "machines" / booted / "layer.raw"
    fsck = subprocess.run(["e2fsck", "-fn", layer], capture_output=True, text=True, check=False)
    assert fsck.returncode == 0, fsck.stdout + fsck.stderr
    assert os.path.exists(layer)


@pytest.mark.guest
@pytest.mark.timeout(400)
def test_cloud_init_has_nothing_to_complain_of(kvmkit: Kvmkit, tmp_path: Path) -> None:
    needs_image()
    pytest.importorskip("pycdlib")
    seeded = tmp_path / "user-data"
    seeded.write_bytes(seed.user_data(None, "secret"))
    vm = ("--name", "clouded", "debian-systemd", "--accel", "tcg", "--memory", "1G")
    try:
        assert kvmkit("run", "-d", *vm, "--user-data", str(seeded)).returncode == 0
        done = kvmkit("exec", "clouded", "--", "cloud-init", "status", "--wait", timeout=300)
        assert (done.returncode, done.stdout.split()[-1]) == (0, "done"), done
        done = kvmkit("exec", "clouded", "--", "grep", "-E", "WARN|ERROR|Traceback", "/var/log/cloud-init.log")
        assert done.stdout == ""
        assert kvmkit("exec", "clouded", "hostname").stdout == "clouded\n"
        assert kvmkit("exec", "clouded", "systemctl", "is-active", "kvmkit-ssh.socket").stdout == "active\n"
    finally:
        kvmkit("rm", "-f", "clouded")


KEY = "/etc/ssh/ssh_host_ed25519_key.pub"
