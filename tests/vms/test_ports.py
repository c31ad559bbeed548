"""virtio-console with Linux: named ports both ways, a console, and qemu-ga in a guest."""

from __future__ import annotations

import os
import shutil
import socket
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest.tools import libraries

pytestmark = pytest.mark.guest
QEMU_GA = shutil.which("qemu-ga") or shutil.which("qemu-ga", path="/usr/sbin:/usr/bin")


@pytest.fixture(scope="module")
def ports(kvmkit) -> Iterator[str]:
    words = [f"--console-port={name}" for name in ("org.data.0", "hvc0", "org.qemu.guest_agent.0")]
    assert kvmkit("run", "-d", "--name", "ports", "--accel", "tcg", "--memory", "256M", *words).returncode == 0
    assert kvmkit("wait", "--ready", "ports").returncode == 0
    yield "ports"
    kvmkit("rm", "-f", "ports")


def device(kvmkit, name: str) -> str:
    """The guest's device of a port."""
    find = f"cd /sys/class/virtio-ports; for p in *; do [ $(cat $p/name) = {name} ] && echo /dev/$p; done"
    return kvmkit("exec", "ports", "sh", "-c", find).stdout.strip()


def connected(home: Path, name: str) -> socket.socket:
    program = socket.socket(socket.AF_UNIX)
    program.settimeout(60)
    program.connect(str(home / "data" / "machines" / "ports" / f"{name}.port"))
    return program


def read_exactly(program: socket.socket, count: int) -> bytes:
    got = b""
    while len(got) < count:
        part = program.recv(1 << 16)
        assert part, got
        got += part
    return got


def test_a_port_both_ways(kvmkit, ports: str, home: Path) -> None:
    path = device(kvmkit, "org.data.0")
    assert path.startswith("/dev/vport")
    with connected(home, "org.data.0") as program:
        data = os.urandom(200_000)
        program.sendall(b"a line for the guest\n")
        assert kvmkit("exec", ports, "sh", "-c", f"head -n 1 < {path}").stdout == "a line for the guest\n"
        guest = kvmkit("exec", "-i", ports, "sh", "-c", f"cat > /tmp/d; cat /tmp/d > {path} &", input=data, text=False)
        assert guest.returncode == 0
        assert read_exactly(program, len(data)) == data


def test_a_console(kvmkit, ports: str, home: Path) -> None:
    with connected(home, "hvc0") as program:
        script = "exec 3<> /dev/hvc0; stty raw -echo <&3; echo from the guest >&3; head -c 5 <&3"
        run = f"({script}) > /tmp/console 2>&1 &"
        assert kvmkit("exec", ports, "sh", "-c", run).returncode == 0
        assert read_exactly(program, 15) == b"from the guest\n"
        program.sendall(b"keys\n")
        end = time.monotonic() + 60
        while kvmkit("exec", ports, "cat", "/tmp/console").stdout != "keys\n":
            assert time.monotonic() < end
            time.sleep(0.2)
    assert kvmkit("exec", ports, "stty", "-F", "/dev/hvc0", "size").stdout == "25 80\n"


@pytest.mark.skipif(not QEMU_GA, reason="qemu-ga is not installed (qemu-guest-agent)")
def test_qemu_ga_in_a_guest(kvmkit, ports: str, tmp_path: Path) -> None:
    assert QEMU_GA
    nobody = kvmkit("guest", "agent", ports, timeout=60)
    assert (nobody.returncode, "is qemu-ga running in the guest" in nobody.stderr) == (1, True)
    tree = tmp_path / "qga"
    tree.mkdir()
    shutil.copy(QEMU_GA, tree)
    for library in libraries(QEMU_GA):
        shutil.copy(library, tree)
    assert kvmkit("cp", str(tree), f"{ports}:/root/").returncode == 0
    start = (
        "cd /root/qga && mkdir -p /var/run && ./ld-linux-x86-64.so.2 --library-path . ./qemu-ga"
        f" -d -m virtio-serial -p {device(kvmkit, 'org.qemu.guest_agent.0')}"
    )
    done = kvmkit("exec", ports, "sh", "-c", start)
    assert done.returncode == 0, done
    assert "answers" in kvmkit("guest", "agent", ports).stdout
    done = kvmkit("guest", "agent", ports, "--", "/bin/sh", "-c", "uname -n; exit 5")
    assert (done.returncode, done.stdout) == (5, "debian\n")
    refused = kvmkit("guest", "agent", ports, "--", "/no/such")
    assert (refused.returncode, "refuses" in refused.stderr) == (1, True)


def test_a_vm_without_the_port_says_so(kvmkit, web: str) -> None:
    done = kvmkit("guest", "agent", web)
    assert (done.returncode, "give it --console-port org.qemu.guest_agent.0" in done.stderr) == (2, True)
