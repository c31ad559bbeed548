"""vsock with Linux: the agent's second channel, sockets both ways, and the short way of `kvmkit exec`."""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import shutil
import socket
import subprocess
import time
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest

ECHO = r"""
#include <sys/socket.h>
#include <linux/vm_sockets.h>
#include <stdio.h>
#include <stdlib.h>
#include <string.h>
#include <unistd.h>
int main(int argc, char **argv)
{   /* "listen PORT": copy back what comes; "connect PORT": carry standard input and output */
    static char data[65536];
    struct sockaddr_vm a = {.svm_family = AF_VSOCK, .svm_cid = VMADDR_CID_ANY, .svm_port = atoi(argv[2])};
    int fd = socket(AF_VSOCK, SOCK_STREAM, 0), n;
    if (!strcmp(argv[1], "listen")) {
        if (bind(fd, (void *)&a, sizeof a) || listen(fd, 5))
            return 1;
        puts("listening");
        fflush(stdout);
        int c = accept(fd, 0, 0);
        while ((n = read(c, data, sizeof data)) > 0)
            write(c, data, n);
        return 0;
    }
    a.svm_cid = 2;
    if (connect(fd, (void *)&a, sizeof a))
        return perror("connect"), 1;
    while ((n = read(0, data, sizeof data)) > 0)
        write(fd, data, n);
    shutdown(fd, SHUT_WR);
    while ((n = read(fd, data, sizeof data)) > 0)
        write(1, data, n);
    return 0;
}
"""


def channel(home: Path, name: str) -> str:
    """What the VM's process says of the way to its agent."""
    with socket.socket(socket.AF_UNIX) as control:
        control.settimeout(30)
        control.connect(str(home / "data" / "machines" / name / "control.sock"))
        control.sendall(b'{"kvmkit": 1, "verb": "stats"}\n')
        return str(json.loads(control.makefile().readline())["agent_channel"])


@pytest.fixture(scope="module")
def by_vsock(home: Path, web: str) -> str:
    end = time.monotonic() + 60
    while channel(home, web) != "vsock":
        assert time.monotonic() < end, "the agent does not come by vsock"
        time.sleep(0.1)
    return web


@pytest.fixture(scope="module")
def echo(kvmkit, by_vsock: str, tmp_path_factory: pytest.TempPathFactory) -> str:
    if not shutil.which("gcc"):
        pytest.skip("no C compiler")
    directory = tmp_path_factory.mktemp("echo")
    (directory / "echo.c").write_text(ECHO)
    built = subprocess.run(["gcc", "-O1", "-static", "-w", "-o", directory / "echo", directory / "echo.c"], check=False)
    if built.returncode:
        pytest.skip("no static C library (libc6-dev)")
    assert kvmkit("cp", str(directory / "echo"), f"{by_vsock}:/root/echo").returncode == 0
    return "/root/echo"


@pytest.fixture
def path(kvmkit, home: Path, web: str) -> str:
    return str(home / "data" / "machines" / web / "vsock.sock")


def test_data_by_the_agents_channel_is_whole_both_ways(kvmkit, by_vsock: str) -> None:
    data = os.urandom(3_000_000)
    done = kvmkit("exec", "-i", by_vsock, "sh", "-c", "tee /tmp/d | sha256sum >&2; cat /tmp/d", input=data, text=False)
    assert done.stdout == data
    assert done.stderr.split()[0].decode() == hashlib.sha256(data).hexdigest()


def test_the_host_connects(kvmkit, by_vsock: str, echo: str, path: str) -> None:
    run = kvmkit("exec", by_vsock, "sh", "-c", f"{echo} listen 5000 > /tmp/said & while ! [ -s /tmp/said ]; do :; done")
    assert run.returncode == 0
    data = os.urandom(500_000)
    with socket.socket(socket.AF_UNIX) as program:
        program.settimeout(60)
        program.connect(path)
        program.sendall(b"CONNECT 5000\n")
        assert program.recv(64).startswith(b"OK ")
        got, sent = b"", 0
        while len(got) < len(data):
            if sent < len(data) and sent - len(got) < 100_000:
                sent += program.send(data[sent : sent + 50_000])
            with contextlib.suppress(BlockingIOError):
                got += program.recv(1 << 16, socket.MSG_DONTWAIT if sent < len(data) else 0)
        assert got == data
    with socket.socket(socket.AF_UNIX) as program:  # nobody listens any more
        program.settimeout(60)
        program.connect(path)
        program.sendall(b"CONNECT 5001\n")
        assert program.recv(64) == b""


def test_the_guest_connects(kvmkit, by_vsock: str, echo: str, path: str) -> None:
    data = os.urandom(300_000)
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(60)
        server.bind(path + "_77")
        server.listen()
        env = {**os.environ, "KVMKIT_HOME": str(Path(path).parents[3])}
        from tests.cli.calling import COMMAND, environment

        guest = subprocess.Popen(
            [*COMMAND, "exec", "-i", by_vsock, echo, "connect", "77"],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, env={**environment(), **env},
        )  # fmt: skip
        assert guest.stdin is not None
        guest.stdin.write(data)
        guest.stdin.close()
        guest.stdin = None
        program, _ = server.accept()
        with program:
            program.settimeout(60)
            got = b""
            while part := program.recv(1 << 16):
                got += part
            program.sendall(got[::-1])
        out, _ = guest.communicate(timeout=60)
        assert (got, out, guest.returncode) == (data, data[::-1], 0)
    os.unlink(path + "_77")
    assert "connect" in kvmkit("exec", by_vsock, echo, "connect", "77").stderr
    # Only root's programs reach the agent's port on the host, and only from a low port.
    assert kvmkit("exec", by_vsock, echo, "connect", "1024").returncode == 1


def test_exec_as_a_user_with_all_that_quoting_may_break(kvmkit, by_vsock: str) -> None:
    words = ['a"b', "c\\d", "é\n€", "$HOME", ""]
    assert kvmkit("exec", by_vsock, "printf", "%s|", *words).stdout == "|".join([*words, ""])
    assert kvmkit("exec", "-u", "nobody", by_vsock, "id", "-u").stdout == "65534\n"
    assert kvmkit("exec", by_vsock, "sh", "-c", "exit 9").returncode == 9
    assert kvmkit("exec", by_vsock, "no-such").stderr == "kvmkit: no-such: command not found\n"
    assert kvmkit("exec", "nobody-knows-it", "true").returncode == 2
    assert kvmkit("exec", "-i", by_vsock, "tr", "a-z", "A-Z", input="abc").stdout == "ABC"


def test_the_clock_is_right_after_a_pause(kvmkit, by_vsock: str) -> None:
    assert kvmkit("exec", by_vsock, "date", "-s", "2020-01-01").returncode == 0
    assert kvmkit("pause", by_vsock).returncode == 0
    assert kvmkit("resume", by_vsock).returncode == 0
    assert abs(int(kvmkit("exec", by_vsock, "date", "+%s").stdout) - time.time()) < 5


def test_without_vsock_the_serial_port_does(kvmkit, home: Path) -> None:
    assert kvmkit("run", "-d", "--name", "slow", "--accel", "tcg", "--memory", "128M", "--no-vsock").returncode == 0
    assert kvmkit("exec", "slow", "sh", "-c", "ls /dev/vsock 2>/dev/null; echo here").stdout == "here\n"
    assert channel(home, "slow") == "serial"
    assert kvmkit("rm", "-f", "slow").returncode == 0


def test_a_device_without_a_driver_is_noted(kvmkit) -> None:
    words = ["--no-vsock", "--rng", "--append", "initcall_blacklist=acpi_init", "--net", "none"]
    assert kvmkit("run", "-d", "--name", "bare", "--accel", "tcg", "--memory", "128M", *words).returncode == 0
    assert kvmkit("wait", "--ready", "bare").returncode == 0
    assert kvmkit("kill", "bare").returncode == 0
    assert "rng into use: its kernel needs CONFIG_HW_RANDOM_VIRTIO" in kvmkit("logs", "--process", "bare").stdout
    assert kvmkit("rm", "-f", "bare").returncode == 0
