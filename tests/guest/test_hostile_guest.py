"""A guest that lies to its client: every lie ends in one line, and takes no memory or time without bound."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator

import pytest

from kvmkit.guest.client import AgentClient, AgentGone, ProtocolError
from kvmkit.guest.protocol import HELLO, SERIAL, Type, encode


@pytest.fixture
def pair() -> Iterator[tuple[AgentClient, socket.socket]]:
    ours, guest = socket.socketpair()
    with ours, guest:
        guest.sendall(encode(Type.HELLO, 0, HELLO))
        client = AgentClient(ours.fileno())
        client.wait_hello(5)
        yield client, guest


def full_pipe() -> tuple[int, int]:
    reading, full = os.pipe()
    os.set_blocking(full, False)
    try:
        while os.write(full, bytes(4096)):
            pass
    except BlockingIOError:
        pass
    return reading, full


@pytest.mark.parametrize(
    ("lie", "words"),
    [
        (encode(Type.STDOUT, 2, b"x"), "command 2, which does not run"),
        (encode(Type.EXIT, 2, b"\0\0"), "command 2, which does not run"),
        (encode(Type.CREDIT, 1, b"\0\xff\xff\xff\xff"), "more input than it was sent"),
        (b"\0\0\0\0", "unknown type"),
    ],
)
def test_a_lie_is_named(pair: tuple[AgentClient, socket.socket], lie: bytes, words: str) -> None:
    client, guest = pair
    guest.sendall(lie)
    with pytest.raises(ProtocolError, match=words):
        client.run(["true"], stdout=None, stderr=None, timeout=10)


def test_output_beyond_the_window_is_refused(pair: tuple[AgentClient, socket.socket]) -> None:
    client, guest = pair
    reading, full = full_pipe()
    command = client.start(["yes"], stdout=full)
    for _ in range(SERIAL.output_window // SERIAL.data):
        guest.sendall(encode(Type.STDOUT, 1, bytes(SERIAL.data)))
        client._turn(None)
    guest.sendall(encode(Type.STDOUT, 1, b"x"))
    with pytest.raises(ProtocolError, match="more output than"):
        client.wait(command, 10)
    assert len(command.outputs[1].pending) <= SERIAL.output_window
    os.close(reading)
    os.close(full)


@pytest.mark.parametrize("again", [Type.ERROR, Type.EXIT, Type.STDOUT, Type.STDERR, Type.STARTED])
def test_a_command_that_has_ended_says_no_more(pair: tuple[AgentClient, socket.socket], again: Type) -> None:
    client, guest = pair
    reading, full = full_pipe()
    command = client.start(["x"], stdout=None, stderr=full)
    guest.sendall(encode(Type.ERROR, 1, b"\3\2"))
    client._turn(None)
    before = len(command.outputs[2].pending)
    assert before > 0
    guest.sendall(encode(again, 1, bytes(4 if again is Type.STARTED else 2)) * 1000)  # each would add a line
    with pytest.raises(ProtocolError, match="command 1, which has ended"):
        client.wait(command, 10)
    assert len(command.outputs[2].pending) == before
    os.close(reading)
    os.close(full)


def test_a_guest_that_ends_right_after_its_commands_end(pair: tuple[AgentClient, socket.socket]) -> None:
    client, guest = pair
    reading, writing = os.pipe()
    command = client.start(["x"], stdout=writing, stderr=None)
    guest.sendall(encode(Type.STDOUT, 1, b"last words") + encode(Type.EXIT, 1, b"\0\5"))
    guest.shutdown(socket.SHUT_WR)
    assert client.wait(command, 10) == 5
    assert os.read(reading, 100) == b"last words"
    os.close(reading)
    os.close(writing)


def test_a_guest_that_never_answers(pair: tuple[AgentClient, socket.socket]) -> None:
    ours, guest = socket.socketpair()
    with ours, guest:
        client = AgentClient(ours.fileno())
        with pytest.raises(AgentGone, match="did not answer within"):
            client.wait_hello(0.1)
        guest.close()
        with pytest.raises(AgentGone, match="has gone"):
            client.wait_hello(5)
