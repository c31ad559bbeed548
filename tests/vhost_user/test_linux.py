"""Linux as the driver of devices that other processes serve."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

import kvmkit
from kvmkit.vhost_user.daemon import find
from kvmkit.vhost_user.virtiofsd import PLACES

from .daemon import StorageDaemon

pytestmark = pytest.mark.guest
RUN = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--timeout", "100"]
MIB = 1 << 20
needs_daemon = pytest.mark.skipif(
    not shutil.which("qemu-storage-daemon"), reason="qemu-storage-daemon is not installed (qemu-system-common)"
)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(tmp_path)
    yield daemon
    daemon.stop()


@needs_daemon
def test_nothing_is_lost_with_a_storage_daemon(daemon: StorageDaemon) -> None:
    script = """
        head -c 4000000 /dev/urandom > /tmp/x; echo ready
        for i in 1 2 3 4 5 6; do
            dd if=/tmp/x of=/dev/vda bs=64k seek=$i conv=fsync 2>/dev/null || echo failed
        done
        echo 3 > /proc/sys/vm/drop_caches
        dd if=/dev/vda bs=64k skip=6 2>/dev/null | head -c 4000000 | cmp - /tmp/x && echo same
    """
    options = ["--vhost-user", f"blk={daemon.socket}", "--transport", "pci"]
    run = subprocess.Popen(
        [*RUN, *options, "--", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    for _ in range(2):
        time.sleep(0.3)
        daemon.stop()
        time.sleep(0.1)
        daemon.start()
    out, said = run.communicate()
    assert (out, run.returncode) == ("same\n", 0), said
    assert "is gone" in said
    assert "serves it again" in said
    daemon.stop()
    subprocess.run(["qemu-img", "check", "-q", str(daemon.image)], check=True)


needs_virtiofsd = pytest.mark.skipif(not find("virtiofsd", PLACES), reason="virtiofsd is not installed")


@needs_virtiofsd
def test_volumes_both_ways(tmp_path: Path) -> None:
    shared, secret = tmp_path / "shared", tmp_path / "secret"
    shared.mkdir()
    secret.write_text("secret")
    (shared / "from-host").write_text("one")
    (shared / "absolute").symlink_to(secret)
    (shared / "relative").symlink_to("../secret")
    script = """
        cd '/a place'; cat from-host; echo; echo two > from-guest; mkdir made
        cat absolute relative ../secret 2>/dev/null; echo escaped > absolute; echo escaped > relative
        echo no > /ro/no || echo refused
        mount -o remount,rw /ro; echo no > /ro/no || echo refused again
        cat; cat later
    """
    volumes = ["--volume", f"{shared}:/a place", "--volume", f"{shared}:/ro:ro"]
    run = subprocess.Popen(
        [*RUN, *volumes, "--", "sh", "-c", script], stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True
    )
    assert run.stdin is not None
    assert run.stdout is not None
    assert [run.stdout.readline() for _ in range(3)] == ["one\n", "refused\n", "refused again\n"]
    assert (shared / "from-guest").read_text() == "two\n"
    (shared / "later").write_text("three")
    run.stdin.close()
    assert run.stdout.read() == "three"
    assert run.wait() == 0
    run.stdout.close()
    assert secret.read_text() == "secret"
    assert (shared / "made").is_dir()
    assert not (shared / "no").exists()


@needs_virtiofsd
def test_a_volume_of_an_ordinary_user_with_further_groups(open_path: Path) -> None:
    if os.getuid() or not shutil.which("setpriv"):
        pytest.skip("needs root and setpriv (util-linux), to be another user")
    asks = """
        import socket, sys, os
        from kvmkit.vhost_user import virtiofsd
        served = virtiofsd.make(sys.argv[1], readonly=len(sys.argv) > 2)
        served.start()
        try:
            with socket.socket(socket.AF_UNIX) as ours:
                ours.connect(served.address)
                ours.sendall((1).to_bytes(4, "little") * 2 + bytes(4))  # VHOST_USER_GET_FEATURES, version 1
                print(len(ours.recv(20, socket.MSG_WAITALL)), served.why())
        finally:
            served.close()
    """
    user = ["setpriv", "--reuid=65534", "--regid=65534", "--groups=65534,1,2"]
    source = {**os.environ, "PYTHONPATH": str(Path(kvmkit.__file__).parents[1])}
    again = "import subprocess, sys, kvmkit; sys.exit(subprocess.call([sys.executable, '-c', '']))"
    for python in (sys.executable, "/usr/bin/python3"):  # the first may be in a home of root's
        if subprocess.run([*user, python, "-c", again], env=source, capture_output=True).returncode == 0:
            break
    else:
        pytest.skip("an ordinary user can't read this Python or this checkout")
    shared = open_path / "shared"
    shared.mkdir()
    os.chown(shared, 65534, 65534)
    for more in ([], ["read-only"]):
        done = subprocess.run(
            [*user, python, "-c", textwrap.dedent(asks), str(shared), *more],
            env=source, capture_output=True, text=True, timeout=30,
        )  # fmt: skip
        assert done.stdout.startswith("20 "), done.stdout + done.stderr


@needs_virtiofsd
def test_a_volume_ends_with_its_vm(tmp_path: Path) -> None:
    def helpers() -> list[str]:
        found = []
        for entry in Path("/proc").glob("[0-9]*/cmdline"):
            try:
                line = entry.read_bytes()
            except OSError:
                continue
            if f"source={tmp_path}".encode() in line or f"--shared-dir={tmp_path}".encode() in line:
                found.append(entry.parent.name)
        return found

    options = ["--volume", f"{tmp_path}:/work", "--", "sh", "-c", "echo ready; sleep 1000"]
    run = subprocess.Popen([*RUN, *options], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    assert helpers()
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    end = time.monotonic() + 20
    while helpers():
        assert time.monotonic() < end
        time.sleep(0.05)


@needs_virtiofsd
def test_a_volume_whose_server_dies_is_mounted_again(tmp_path: Path) -> None:
    shared = tmp_path / "shared"
    shared.mkdir()
    (shared / "file").write_text("here")
    script = """
        exec 3< /work/file; echo ready; read line
        cat /work/file; ls /work; cat <&3; exec 3<&-
        for i in 1 2 3 4 5 6 7 8 9 10; do
            umount /work 2>/dev/null; mount -t virtiofs kvmkit0 /work && break; sleep 0.3
        done
        cat /work/file; echo more > /work/new; sync
    """
    run = subprocess.Popen(
        [*RUN, "--volume", f"{shared}:/work", "--", "sh", "-c", script],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    for daemon in processes(str(shared), b"virtiofsd\0"):
        os.kill(daemon, signal.SIGKILL)
    time.sleep(0.5)
    out, said = run.communicate("go\n")
    assert (out, run.returncode) == ("here", 0), said
    assert said.count("ransport endpoint is not connected") >= 2, said
    assert "until it mounts it again" in said
    assert (shared / "new").read_text() == "more\n"
    assert processes(str(shared), b"virtiofsd\0") == []


def processes(text: str, program: bytes = b"storage-daemon\0") -> list[int]:
    """Those whose command line holds it."""
    found = []
    for entry in Path("/proc").glob("[0-9]*/cmdline"):
        try:
            line = entry.read_bytes()
        except OSError:
            continue
        if text.encode() in line and program in line:
            found.append(int(entry.parent.name))
    return found


@needs_daemon
def test_a_qcow2_disk_and_a_daemon_that_is_killed(tmp_path: Path) -> None:
    base, top = tmp_path / "base.raw", tmp_path / "top.qcow2"
    data = os.urandom(1 << 20)
    base.write_bytes(data + bytes(15 << 20))
    create = ["qemu-img", "create", "-q", "-f", "qcow2", "-b", "base.raw", "-F", "raw", str(top)]
    subprocess.run(create, check=True)
    script = """
        head -c 1048576 /dev/vda | sha256sum; head -c 2000000 /dev/urandom > /tmp/x
        for i in 1 2 3 4 5 6; do dd if=/tmp/x of=/dev/vda bs=64k seek=$i conv=fsync 2>/dev/null || echo failed; done
        echo 3 > /proc/sys/vm/drop_caches
        dd if=/dev/vda bs=64k skip=6 2>/dev/null | head -c 2000000 | cmp - /tmp/x && echo same
    """
    run = subprocess.Popen(
        [*RUN, "--disk", str(top), "--", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline().split()[0] == hashlib.sha256(data).hexdigest()
    (daemon,) = processes(str(top))
    os.kill(daemon, signal.SIGKILL)
    out, said = run.communicate()
    assert (out, run.returncode) == ("same\n", 0), said
    assert "until it is started again" in said
    assert "serves it again" in said
    assert processes(str(top)) == []
    assert base.read_bytes()[: 1 << 20] == data
    subprocess.run(["qemu-img", "check", "-q", str(top)], check=True)


def refuse(*options: str, **environment: str) -> str:
    done = subprocess.run(
        [*RUN, *options, "--", "true"], capture_output=True, text=True, env={**os.environ, **environment}
    )
    assert done.returncode in (1, 2)
    assert "Traceback" not in done.stderr
    return done.stderr


def test_what_can_not_be(tmp_path: Path) -> None:
    assert "such as .:/work" in refuse("--volume", "/tmp")
    assert "is not there" in refuse("--volume", f"{tmp_path}/none:/work")
    assert "is a whole path" in refuse("--volume", f"{tmp_path}:work")
    assert "is a whole path" in refuse("--volume", f"{tmp_path}:/a/../..")
    assert "no process serves" in refuse("--vhost-user", f"blk={tmp_path}/s")
    assert "such as --vhost-user blk=" in refuse("--vhost-user", "blk")
    assert "no kind 'sound'" in refuse("--vhost-user", "sound=/tmp/s")
    assert "gpu has no option" in refuse("--vhost-user", "gpu=/tmp/s,queues=2")
    assert "fs needs tag=NAME" in refuse("--vhost-user", "fs=/tmp/s")
    assert "1 to 63" in refuse("--vhost-user", "generic=/tmp/s,id=99,queues=2")
