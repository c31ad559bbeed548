"""The switch: who gets a frame, and what happens to one that nobody takes."""

from __future__ import annotations

import os
import socket
import struct
import threading
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from net_card import BROADCAST, Peer

from kvmkit.errors import BadInput
from kvmkit.net import switch_process
from kvmkit.net.switch import Switch

A, B, C = (bytes.fromhex(f"0200000000{i:02x}") for i in (1, 2, 3))


def frame(to: bytes, source: bytes, payload: bytes = b"x" * 50) -> bytes:
    return to + source + b"\x88\xb5" + payload


class Running:
    """A switch on a thread, and as many ports as are asked for."""

    def __init__(self, path: Path) -> None:
        self.path = str(path)
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(self.path)
        listener.listen(8)
        listener.setblocking(False)
        self.switch = Switch(listener)
        self.ending = False
        self.thread = threading.Thread(target=self._run)
        self.thread.start()
        self.ports: list[Peer] = []

    def _run(self) -> None:
        while not self.ending:
            self.switch.run(0.02)

    def plug(self) -> Peer:
        count = self.switch.count
        own = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        own.connect(self.path)
        while self.switch.count == count:
            time.sleep(0.001)
        self.ports.append(Peer(own))
        return self.ports[-1]

    def close(self) -> None:
        self.ending = True
        self.thread.join()
        for port in self.ports:
            port.socket.close()
        self.switch.close()


@pytest.fixture
def switch(tmp_path: Path) -> Iterator[Running]:
    running = Running(tmp_path / "switch.sock")
    yield running
    running.close()


def test_it_learns_who_is_where(switch: Running) -> None:
    a, b, c = (switch.plug() for _ in range(3))
    a.send(frame(B, A))
    assert b.receive() == c.receive() == frame(B, A), "nobody has heard of B: everybody gets it"
    b.send(frame(A, B))
    assert a.receive() == frame(A, B)
    a.send(frame(B, A, b"second" * 10))
    assert b.receive() == frame(B, A, b"second" * 10)
    c.send(frame(BROADCAST, C))
    assert a.receive() == b.receive() == frame(BROADCAST, C)
    assert c.receive(0.02) == b"", "neither B's frames nor its own"
    b.socket.close()
    while switch.switch.count == 3:
        time.sleep(0.001)
    a.send(frame(B, A))
    assert c.receive() == frame(B, A), "B is gone, and forgotten"


def test_one_that_does_not_read_holds_nobody_up(switch: Running) -> None:
    a, b, c = (switch.plug() for _ in range(3))
    c.send(frame(BROADCAST, C))
    assert a.receive() == b.receive() == frame(BROADCAST, C)
    for _ in range(100):
        a.send(*[frame(C, A, bytes(1400))] * 50)
    a.send(frame(BROADCAST, A, b"the end" * 10))
    assert b.receive() == frame(BROADCAST, A, b"the end" * 10)
    (_, _, _), (_, _, _), (_, sent, dropped) = switch.switch.counters()
    assert sent + dropped == 5001
    assert dropped > 4000
    assert c.receive() == frame(C, A, bytes(1400))


def test_bad_bytes_and_small_frames(switch: Running) -> None:
    a, b, c = (switch.plug() for _ in range(3))
    a.send(b"small")
    a.socket.sendall(struct.pack(">I", 1 << 30))
    while switch.switch.count == 3:
        time.sleep(0.001)
    b.send(frame(C, B))
    assert c.receive() == frame(C, B)
    for i in range(5000):  # more addresses than it remembers
        b.send(frame(B, bytes([2, 0, 0, 1, i >> 8, i & 255])))
    c.send(frame(B, C))
    assert b.receive() == frame(B, C)


def test_a_switch_starts_with_its_first_vm_and_ends_with_its_last(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path))
    first, second = (Peer(switch_process.connect("lab")) for _ in range(2))
    first.send(frame(BROADCAST, A))
    assert second.receive() == frame(BROADCAST, A)
    path = tmp_path / "run" / "switches" / "lab.sock"
    assert path.is_socket()
    for peer in (first, second):
        peer.socket.close()
    until = time.monotonic() + 20
    while path.exists() and time.monotonic() < until:
        time.sleep(0.02)
    assert not path.exists()
    third = Peer(switch_process.connect("lab"))
    third.socket.close()
    for process in switch_process._started:
        assert process.wait(20) == 0
    for name in ("", "a/b", "x" * 41, "é"):
        with pytest.raises(BadInput, match="switch="):
            switch_process.connect(name)
    assert os.listdir(path.parent) == ["lab.lock"]
