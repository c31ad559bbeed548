"""Linux as the driver: through passt to the host and back, and from one guest to another over a switch."""

from __future__ import annotations

import contextlib
import functools
import hashlib
import http.server
import json
import os
import shutil
import signal
import socket
import threading
import time
import urllib.request
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.guest.tools import libraries
from tests.vms.conftest import Kvmkit, machines_of

from kvmkit.net import passt

pytestmark = pytest.mark.guest

needs_passt = pytest.mark.skipif(passt.find() is None, reason="passt is not installed")


@pytest.fixture
def kvmkit(tmp_path: Path) -> Iterator[Kvmkit]:
    with machines_of(tmp_path) as call:
        yield call


class Quiet(http.server.SimpleHTTPRequestHandler):
    def log_message(self, format: str, *args: object) -> None: ...


@pytest.fixture
def served(tmp_path: Path) -> Iterator[tuple[Path, int]]:
    """A directory, and the port of 127.0.0.1 by which its files are to be had."""
    directory = tmp_path / "served"
    directory.mkdir()
    server = http.server.ThreadingHTTPServer(("127.0.0.1", 0), functools.partial(Quiet, directory=str(directory)))
    thread = threading.Thread(target=server.serve_forever)
    thread.start()
    yield directory, server.server_address[1]
    server.shutdown()
    thread.join()
    server.server_close()


def free_port() -> int:
    with socket.socket() as one:
        one.bind(("127.0.0.1", 0))
        return int(one.getsockname()[1])


def passts(home: Path) -> set[str]:
    """The processes of passt that VMs of that home started."""
    found = set()
    mark = f"KVMKIT_HOME={home}\0".encode()
    for process in Path("/proc").glob("[0-9]*"):
        with contextlib.suppress(OSError):
            program = (process / "comm").read_text()
            if program.startswith("passt") and mark in (process / "environ").read_bytes():
                found.add(process.name)
    return found


@needs_passt
@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_a_file_from_the_host(kvmkit: Kvmkit, served: tuple[Path, int], tmp_path: Path, transport: str) -> None:
    directory, port = served
    data = os.urandom(8 << 20)
    (directory / "data").write_bytes(data)
    script = f"wget -q -O - http://10.0.2.2:{port}/data | sha256sum; cat /sys/class/net/eth0/mtu /etc/resolv.conf"
    options = ["--accel", "tcg", "--transport", transport, "--net", "user,loopback", "--timeout", "90"]
    done = kvmkit("run", *options, "--", "sh", "-c", script)
    assert done.returncode == 0, done.stderr
    assert done.stdout.split() == [hashlib.sha256(data).hexdigest(), "-", "65520", "nameserver", "10.0.2.3"]
    assert not passts(tmp_path), "it ends with its VM"


@needs_passt
def test_a_published_port_a_policy_and_the_cable(kvmkit: Kvmkit, served: tuple[Path, int]) -> None:
    directory, port = served
    (directory / "hello").write_text("from the host\n")
    published = free_port()
    options = ["--accel", "tcg", "--net", "user,loopback", "--publish", f"{published}:80"]
    assert kvmkit("run", "-d", "--name", "web", *options).returncode == 0
    start = kvmkit("exec", "web", "--", "sh", "-c", "mkdir /www; echo from the guest > /www/x; httpd -p 80 -h /www")
    assert start.returncode == 0, start.stderr
    with urllib.request.urlopen(f"http://127.0.0.1:{published}/x", timeout=60) as answer:
        assert answer.read() == b"from the guest\n"
    listed = json.loads(kvmkit("ps", "--json").stdout)
    assert listed[0]["addresses"] == ["10.0.2.15"]

    def fetch() -> str:
        wget = f"timeout 3 wget -q -O - http://10.0.2.2:{port}/hello || echo no"
        return kvmkit("exec", "web", "--", "sh", "-c", wget).stdout

    assert fetch() == "from the host\n"
    for change, changed, expected in (
        (("--policy", "dns"), "policy: dns", "no\n"),
        (("--policy", f"allow=10.0.2.2:{port}"), "policy: allow", "from the host\n"),
        (("--policy", "all"), "policy: all", "from the host\n"),
        (("--net", "0,link=down"), "net 0: link down", "no\n"),
        (("--net", "0,link=up"), "net 0: link up", "from the host\n"),
    ):
        done = kvmkit("set", "web", *change)
        assert done.stdout.startswith(changed), done
        assert fetch() == expected, change
    mac = kvmkit("exec", "web", "--", "cat", "/sys/class/net/eth0/address").stdout
    assert kvmkit("restart", "web").returncode == 0
    assert kvmkit("exec", "web", "--", "cat", "/sys/class/net/eth0/address").stdout == mac, "its card is the same"


class Taken:
    """What comes by one connection from a guest."""

    def __init__(self, listener: socket.socket) -> None:
        self.connection, _ = listener.accept()
        self.connection.settimeout(0.1)

    def bytes_in(self, seconds: float) -> int:
        end = time.monotonic() + seconds
        count = 0
        while time.monotonic() < end:
            with contextlib.suppress(TimeoutError):
                count += len(self.connection.recv(1 << 16))
        return count

    def wait(self, more: bool, *, than: int = 0, seconds: float = 1) -> None:
        """Until more than that many bytes come within the time, or no longer do: TCP needs a while to recover."""
        end = time.monotonic() + 40
        while (self.bytes_in(seconds) > than) != more:
            assert time.monotonic() < end


@needs_passt
def test_what_runs_is_held_to_a_new_policy_and_a_new_rate(kvmkit: Kvmkit) -> None:
    kib, rate = 1 << 10, 64 << 10
    with socket.create_server(("127.0.0.1", 0)) as listener:
        listener.settimeout(60)
        send = f"yes | nc 10.0.2.2 {listener.getsockname()[1]}"
        start = ("exec", "held", "--", "sh", "-c", f"({send}) >/dev/null 2>&1 &")
        assert kvmkit("run", "-d", "--name", "held", "--accel", "tcg", "--net", "user,loopback").returncode == 0
        assert kvmkit(*start).returncode == 0
        taken = Taken(listener)
        with taken.connection:
            taken.wait(True)
            assert kvmkit("set", "held", "--policy", "deny").returncode == 0
            taken.wait(False)
            assert kvmkit("exec", "held", "--", "sh", "-c", f"timeout 3 sh -c '{send}'").returncode != 0
            listener.settimeout(0)
            with pytest.raises(BlockingIOError):
                listener.accept()
        # Not by the connection of before: passt does not always go on with one of which segments were lost meanwhile.
        assert kvmkit("set", "held", "--policy", "all").returncode == 0
        listener.settimeout(60)
        assert kvmkit(*start).returncode == 0
        taken = Taken(listener)
        with taken.connection:
            taken.wait(True, than=6 * rate, seconds=2)
            assert kvmkit("set", "held", "--net", f"0,bps={rate // kib}K").returncode == 0
            taken.bytes_in(2)  # what was under way
            assert 0 < taken.bytes_in(4) < 6 * rate
            assert kvmkit("set", "held", "--net", "0,bps=0").returncode == 0
            taken.wait(True, than=6 * rate, seconds=2)
        assert kvmkit("rm", "-f", "held").returncode == 0


@needs_passt
def test_a_passt_that_is_killed_is_started_again(kvmkit: Kvmkit, served: tuple[Path, int], tmp_path: Path) -> None:
    directory, port = served
    (directory / "hello").write_text("still here\n")
    assert kvmkit("run", "-d", "--name", "web", "--accel", "tcg", "--net", "user,loopback").returncode == 0
    fetch = f"for i in 1 2 3 4 5; do timeout 3 wget -q -O - http://10.0.2.2:{port}/hello && break; done"
    for _ in range(2):
        assert kvmkit("exec", "web", "--", "sh", "-c", fetch).stdout == "still here\n"
        ours = passts(tmp_path)
        assert len(ours) == 1
        os.kill(int(*ours), signal.SIGKILL)
        until = time.monotonic() + 20
        while not passts(tmp_path) - ours and time.monotonic() < until:
            time.sleep(0.02)
    assert kvmkit("exec", "web", "--", "sh", "-c", fetch).stdout == "still here\n"
    assert "passt ended; it is started again" in kvmkit("logs", "--process", "web").stdout
    (told,) = json.loads(kvmkit("inspect", "web").stdout)
    (card,) = told["live"]["networks"]
    assert card["link"]
    assert card["pairs"][0]["received"]["frames"] > 10
    assert kvmkit("kill", "web").returncode == 0
    assert not passts(tmp_path)


def test_two_guests_over_a_switch(kvmkit: Kvmkit) -> None:
    net = "switch=lab,mac=52:6b:00:00:05:06"
    assert kvmkit("run", "-d", "--name", "server", "--accel", "tcg", "--net", net).returncode == 0
    data = "for i in $(seq 2000); do echo line $i; done > /tmp/x; httpd -p 80 -h /tmp; sha256sum < /tmp/x"
    started = kvmkit("exec", "server", "--", "sh", "-c", data)
    (row,) = json.loads(kvmkit("ps", "--json").stdout)
    assert row["addresses"] == ["169.254.6.7"]
    client = ["--accel", "tcg", "--net", "switch=lab", "--timeout", "90"]
    fetched = kvmkit("run", *client, "--", "sh", "-c", "timeout 20 wget -q -O - http://169.254.6.7/x | sha256sum")
    assert fetched.stdout == started.stdout, fetched.stderr


@pytest.mark.skipif(not shutil.which("iperf3"), reason="iperf3 is not installed")
def test_iperf3_over_a_switch(kvmkit: Kvmkit, tmp_path: Path) -> None:
    from kvmkit.guest import images

    image = images.ensure()
    extra = tmp_path / "iperf3.cpio"
    program = with_libraries(str(shutil.which("iperf3")), extra)
    initrds = ["--kernel", str(image.kernel), "--initrd", str(image.initrd), "--initrd", str(extra)]
    for name, net in (("server", "switch=lab,mac=52:6b:00:00:05:06"), ("client", "switch=lab")):
        done = kvmkit("run", "debian", "-d", "--name", name, "--accel", "tcg", "--net", net, *initrds)
        assert done.returncode == 0, done.stderr
    assert kvmkit("exec", "server", "--", *program, "-s", "-D").returncode == 0
    for way in ([], ["-R"]):
        done = kvmkit("exec", "client", "--", *program, "-c", "169.254.6.7", "-n", "8M", "-J", *way)
        end = json.loads(done.stdout)["end"]
        assert end["sum_sent"]["bytes"] >= 8 << 20, done
        assert end["sum_received"]["bytes"] >= 4 << 20, done  # it stops to count when the sender says it is done


def with_libraries(program: str, target: Path) -> list[str]:
    """Write an initramfs with a program of the host's and its libraries; how it is called in a guest that has none."""
    from kvmkit.guest.cpio import CpioWriter

    files = sorted({str(library) for library in libraries(program)})
    with target.open("wb") as file:
        cpio = CpioWriter(file)
        cpio.directory("p")
        for path in (program, *files):
            cpio.file(f"p/{'ld.so' if '/ld-' in path else os.path.basename(path)}", Path(path).read_bytes(), 0o755)
        cpio.finish()
    return ["/p/ld.so", "--library-path", "/p", f"/p/{os.path.basename(program)}"]


def test_a_switch_goes_with_its_vms(kvmkit: Kvmkit, tmp_path: Path) -> None:
    done = kvmkit("run", "--accel", "tcg", "--net", "switch=lone", "--", "ip", "-4", "addr", "show", "eth0")
    assert "inet 169.254." in done.stdout
    path = tmp_path / "run" / "switches" / "lone.sock"
    until = time.monotonic() + 20
    while path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not path.exists()


def test_cards_that_can_not_be_had(kvmkit: Kvmkit, tmp_path: Path) -> None:
    for words, why in (
        (["--net", f"socket={tmp_path}/none"], "No such file"),
        (["--net", "bridge=kvmkit-none"], "there is none: sudo ip link add kvmkit-none type bridge"),
        (["--net", "network=none"], "sudo kvmkit network create none"),
        (["--net", "none", "--publish", "1:1"], "--publish 1:1: goes with --net user"),
        (["--net", "none", "--policy", "deny"], "there is no network card"),
        (["--policy", "some"], "no such policy"),
    ):
        done = kvmkit("run", "--accel", "tcg", *words, "--", "true")
        assert (done.returncode, done.stderr.count("\n")) == (2, 1), done
        assert why in done.stderr
