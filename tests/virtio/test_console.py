"""Ports and consoles by their queues."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver
from kvmkit.virtio.console import MULTIPORT, SIZE, Console

MIB = 1 << 20
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
READY, ADD, REMOVE, PORT_READY, CONSOLE_PORT, RESIZE, OPEN, NAME = range(8)
BUFFER = 256


class Guest:
    """A driver with receive buffers in every queue that needs them."""

    def __init__(self, directory: Path, packed: bool, names: list[str], features: int = MULTIPORT | SIZE) -> None:
        self.memory = GuestMemory(4 * MIB)
        self.said: list[str] = []
        self.paths = [str(directory / name) for name in names]
        device = Console(self.memory, list(zip(names, self.paths, strict=True)), log=self.said.append)
        self.driver = MmioDriver(device, self.memory, packed=packed, features=features)
        self.driver.start()
        self.restart()

    def restart(self) -> None:
        """Receive buffers, in a device that has just been started."""
        self.came: dict[int, list[bytes]] = {}
        self.places: dict[tuple[int, int], int] = {}
        for queue in range(0, len(self.driver.queues), 2):
            self.came[queue] = []
            for slot in range(8):
                self.offer(queue, slot)
            self.driver.ring(queue)

    def offer(self, queue: int, slot: int) -> None:
        at = self.driver.buffers + (queue * 8 + slot) * BUFFER
        self.places[queue, self.driver.queues[queue].add([(at, BUFFER, True)])] = slot

    def look(self) -> None:
        for queue, came in self.came.items():
            done = [(self.places.pop((queue, n)), length) for n, length in self.driver.queues[queue].collect()]
            for slot, length in done:
                came.append(self.memory.read(self.driver.buffers + (queue * 8 + slot) * BUFFER, length))
                self.offer(queue, slot)
            if done:
                self.driver.ring(queue)

    def next(self, queue: int) -> bytes:
        end = time.monotonic() + 20
        while not self.came[queue]:
            assert time.monotonic() < end, "nothing came"
            self.look()
            if not self.came[queue]:
                self.driver.wait_interrupt(0.02)
        return self.came[queue].pop(0)

    def quiet(self, queue: int) -> bool:
        self.driver.wait_interrupt(0.05)
        self.look()
        return not self.came[queue]

    def send(self, queue: int, data: bytes) -> None:
        at = self.driver.buffers + 0x20000
        self.memory.write(at, data)
        self.driver.queues[queue].add([(at, len(data), False)])
        self.driver.ring(queue)

    def control(self, number: int, event: int, value: int = 1) -> None:
        self.send(3, struct.pack("<IHH", number, event, value))
        self.driver.collect(3)

    def event(self) -> tuple[int, int, int, bytes]:
        data = self.next(2)
        return (*struct.unpack("<IHH", data[:8]), data[8:])

    def begin(self, ports: int) -> None:
        """As Linux does at the start."""
        self.control(0, READY)
        assert [self.event() for _ in range(ports)] == [(i, ADD, 1, b"") for i in range(ports)]
        for number in range(ports):
            self.control(number, PORT_READY)

    def close(self) -> None:
        self.driver.close()
        self.memory.close()


@contextlib.contextmanager
def guest(
    directory: Path, packed: bool = False, names: tuple[str, ...] = ("hvc0", "org.data.0"), **options: int
) -> Iterator[Guest]:
    made = Guest(directory, packed, list(names), **options)
    try:
        yield made
    finally:
        made.close()


def program(path: str) -> socket.socket:
    made = socket.socket(socket.AF_UNIX)
    made.settimeout(20)
    made.connect(path)
    return made


@formats
def test_ports_are_told_with_their_names(tmp_path: Path, packed: bool) -> None:
    with guest(tmp_path, packed) as g:
        assert g.driver.register(0x104) == 2
        g.begin(2)
        told = [g.event() for _ in range(6)]
        assert told[:3] == [(0, CONSOLE_PORT, 1, b""), (0, NAME, 1, b"hvc0"), (0, OPEN, 0, b"")]
        assert told[3] == (0, RESIZE, 1, struct.pack("<HH", 80, 25))
        assert told[4:] == [(1, NAME, 1, b"org.data.0"), (1, OPEN, 0, b"")]


@formats
def test_data_both_ways_and_ends(tmp_path: Path, packed: bool) -> None:
    with guest(tmp_path, packed) as g:
        g.begin(2)
        for _ in range(6):
            g.event()
        with program(g.paths[1]) as p:
            assert g.event() == (1, OPEN, 1, b"")
            p.sendall(b"early")
            assert g.quiet(4)  # nobody has it open in the guest
            g.control(1, OPEN)
            assert g.next(4) == b"early"
            g.send(5, b"answer")
            assert p.recv(64) == b"answer"
            g.driver.collect(5)
            with program(g.paths[1]) as second:
                assert second.recv(1) == b""
            p.sendall(b"last")
        assert g.next(4) == b"last"
        assert g.event() == (1, OPEN, 0, b"")
        g.send(5, b"lost")
        assert g.driver.collect(5)
        with program(g.paths[1]) as p:
            assert g.event() == (1, OPEN, 1, b"")
            g.send(5, b"kept")
            assert p.recv(64) == b"kept"


@formats
def test_a_reader_that_is_slow_stops_the_guest_and_loses_nothing(tmp_path: Path, packed: bool) -> None:
    with guest(tmp_path, packed) as g:
        g.begin(2)
        with program(g.paths[1]) as p:
            g.control(1, OPEN)
            at, size, ring = g.driver.buffers + 0x40000, 60_000, g.driver.queues[5]
            pattern = bytes(range(250)) * 240
            g.memory.write(at, pattern)
            sent = 0
            for _ in range(100):
                if ring.free < 2:
                    break
                ring.add([(at, 30_000, False), (at + 30_000, 30_000, False)])
                g.driver.ring(5)
                sent += size
            time.sleep(0.05)
            ring.collect()
            assert ring.free < 16  # some wait
            got = b""
            while len(got) < sent:
                got += p.recv(1 << 16)
            assert got == pattern * (sent // size)


def test_without_ports_it_is_one_console(tmp_path: Path) -> None:
    with guest(tmp_path, features=SIZE) as g:
        with program(g.paths[0]) as p:
            p.sendall(b"keys")
            assert g.next(0) == b"keys"
            g.send(1, b"shown")
            assert p.recv(64) == b"shown"
        g.driver.device.resize(100, 40)
        assert g.driver.register(0x100) == 100 | 40 << 16


def test_a_program_that_went_before_a_reset_is_not_in_the_way(tmp_path: Path) -> None:
    with guest(tmp_path) as g:
        g.begin(2)
        for _ in range(6):
            g.event()
        g.control(1, OPEN)
        with program(g.paths[1]) as p:
            assert g.event() == (1, OPEN, 1, b"")
            p.sendall(bytes(9 * BUFFER))  # more than the guest has room for: its end is not read
            g.driver.wait_interrupt(0.2)
        g.driver.wait_interrupt(0.2)
        g.driver.reset()
        g.driver.start()
        g.restart()
        g.begin(2)
        for _ in range(6):
            g.event()
        with program(g.paths[1]) as p:
            assert g.event() == (1, OPEN, 1, b"")
            g.control(1, OPEN)
            p.sendall(b"of the new one")
            assert g.next(4) == b"of the new one"


@formats
def test_what_is_sent_after_a_queues_reset_is_whole(tmp_path: Path, packed: bool) -> None:
    reset = 1 << 40
    with guest(tmp_path, packed, features=MULTIPORT | SIZE | reset) as g:
        g.begin(2)
        for _ in range(6):
            g.event()
        with program(g.paths[1]) as p:
            assert g.event() == (1, OPEN, 1, b"")
            for _ in range(8):  # more than the socket takes
                g.send(5, b"x" * 0xFFFF)
            while g.driver.wait_interrupt(0.2):
                pass
            assert len(g.driver.queues[5].collect()) < 8
            g.driver.set(0x30, 5)
            g.driver.set(0xC0, 1)
            g.driver.set_up(5)
            g.send(5, b"0123456789" * 10 + b".")
            came = b""
            while not came.endswith(b"."):
                came += p.recv(1 << 20)
            assert came.lstrip(b"x") == b"0123456789" * 10 + b"."


@pytest.mark.parametrize("ports", [[], [(True, True)], [(True, 2), (True, True)], [True, True], None])
def test_a_state_of_other_ports_is_refused(tmp_path: Path, ports: object) -> None:
    with guest(tmp_path) as g:
        g.driver.device.hold()
        state = g.driver.device.state()
        with pytest.raises(BadInput, match="port"):
            g.driver.device.restore({**state, "ports": ports})


def test_a_new_size_is_told(tmp_path: Path) -> None:
    with guest(tmp_path) as g:
        g.begin(2)
        for _ in range(6):
            g.event()
        g.driver.device.resize(132, 50)
        assert g.event() == (0, RESIZE, 1, struct.pack("<HH", 132, 50))
        assert g.driver.register(0x100) == 132 | 50 << 16


@formats
def test_hold_reset_and_saved_state(tmp_path: Path, packed: bool) -> None:
    with guest(tmp_path, packed) as g:
        g.begin(2)
        g.control(1, OPEN)
        with program(g.paths[1]) as p:
            g.driver.device.hold()
            p.sendall(b"meanwhile")
            assert g.quiet(4)
            assert g.driver.device.state()["ports"] == [(True, False), (True, True)]
            g.driver.device.release()
            assert g.next(4) == b"meanwhile"
            g.driver.reset()
            p.sendall(b"between")
            assert g.driver.device.connected() == [False, True]
            g.driver.start()
            g.came = {queue: [] for queue in g.came}
            g.places.clear()
            for queue in g.came:
                for slot in range(8):
                    g.offer(queue, slot)
                g.driver.ring(queue)
            g.begin(2)
            assert (1, OPEN, 1, b"") in [g.event() for _ in range(6)]
            g.control(1, OPEN)
            assert g.next(4) == b"between"


@pytest.mark.parametrize("names", [(), ("a", "a"), ("",), ("x" * 64,), ("a/b",), tuple("abcdefghi")])
def test_ports_that_can_t_be(tmp_path: Path, names: tuple[str, ...]) -> None:
    memory = GuestMemory(MIB)
    with pytest.raises(BadInput):
        Console(memory, [(name, str(tmp_path / f"p{i}")) for i, name in enumerate(names)])
    memory.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    st.lists(
        st.tuples(
            st.sampled_from([0, 1, 2, 7, 0xFFFFFFFF]), st.integers(0, 9), st.integers(0, 2), st.integers(0, 2)
        ), max_size=30,
    ),
    st.booleans(),
)  # fmt: skip
def test_any_control_messages_leave_the_device_whole(
    tmp_path: Path, sequence: list[tuple[int, int, int, int]], packed: bool
) -> None:
    with guest(tmp_path, packed) as g:
        clients: list[socket.socket] = []
        for number, event, value, act in sequence:
            g.control(number, event, value)
            g.look()
            if act == 1:
                clients.append(program(g.paths[1]))
            elif clients and act == 2:
                clients.pop().close()
        for client in clients:
            client.close()
        for came in g.came.values():
            came.clear()
        g.send(3, b"short")
        g.driver.collect(3)
        g.control(0, READY)
        while g.event() != (1, ADD, 1, b""):
            pass
        assert g.said == []
    assert os.listdir(tmp_path) == []
