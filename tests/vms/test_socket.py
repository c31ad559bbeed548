"""Whatever is said on a VM's control socket, the VM goes on."""

from __future__ import annotations

import json
import os
import socket
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest


@pytest.fixture
def connect(home: Path, web: str):
    made = []

    def connect() -> socket.socket:
        connection = socket.socket(socket.AF_UNIX)
        made.append(connection)
        connection.settimeout(30)
        directory = os.open(home / "data" / "machines" / web, os.O_RDONLY)
        try:
            connection.connect(f"/proc/self/fd/{directory}/control.sock")
        finally:
            os.close(directory)
        return connection

    yield connect
    for connection in made:
        connection.close()


def answer(connection: socket.socket) -> dict:
    data = b""
    while not data.endswith(b"\n"):
        piece = connection.recv(65536)
        if not piece:
            break
        data += piece
    return json.loads(data)


@pytest.mark.parametrize(
    "sent",
    [
        b"\n",
        b"GET / HTTP/1.1\r\n\r\n",
        b"\xff\xfe\x00\n",
        b"[" * 100000 + b"\n",
        b"x" * (300 << 10),
        b'{"kvmkit":1}\n',
        b'{"kvmkit":2,"verb":"stats"}\n',
        b'{"kvmkit":1,"verb":"frobnicate"}\n',
        b'{"kvmkit":1,"verb":"exec","argv":"true"}\n',
        b'{"kvmkit":1,"verb":"exec","argv":["true"]}\n',
        b'{"kvmkit":1,"verb":"stop","timeout":"soon"}\n',
    ],
)
def test_garbage_gets_a_line_and_the_vm_goes_on(kvmkit, web: str, connect, sent: bytes) -> None:
    connection = connect()
    try:
        connection.sendall(sent)
    except (BrokenPipeError, ConnectionResetError):
        pass
    told = answer(connection)
    assert "\n" not in told["error"]
    assert "Traceback" not in told["error"]
    assert kvmkit("exec", web, "echo", "on").stdout == "on\n"


def test_connections_that_say_nothing_do_not_keep_others_out(kvmkit, web: str, connect) -> None:
    idle = [connect() for _ in range(150)]
    assert kvmkit("exec", web, "echo", "on").stdout == "on\n"
    assert len(idle) == 150


def test_descriptors_nobody_asked_for_are_closed(web: str, connect, home: Path, kvmkit) -> None:
    (told,) = json.loads(kvmkit("inspect", web).stdout)
    before = len(os.listdir(f"/proc/{told['pid']}/fd"))
    null = os.open("/dev/null", os.O_RDWR)
    for _ in range(20):
        connection = connect()
        socket.send_fds(connection, [b'{"kvmkit":1,"verb":"frobnicate"}\n'], [null] * 3)
        assert "error" in answer(connection)
        connection.close()
    os.close(null)
    assert kvmkit("exec", web, "true").returncode == 0
    assert len(os.listdir(f"/proc/{told['pid']}/fd")) <= before + 2


def test_the_socket_is_its_owners_alone(home: Path, web: str) -> None:
    mode = (home / "data" / "machines" / web / "control.sock").stat().st_mode
    assert mode & 0o077 == 0
