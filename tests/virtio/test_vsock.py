"""vsock by its packets: connections both ways, credit, ends, limits, and what a hostile guest may try."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from vsock_guest import CID, CREDIT_REQUEST, CREDIT_UPDATE, HEADER, REQUEST, RESPONSE, RST, RW, SHUTDOWN, Guest

from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.virtio.vsock import Vsock

MIB = 1 << 20
CREDIT = 131072
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


class Setup:
    def __init__(self, directory: Path, packed: bool = False, reserved: tuple[int, ...] = (), feeding: bool = True):
        self.memory = GuestMemory(4 * MIB)
        self.path = str(directory / "v")
        self.said: list[str] = []
        self.device = Vsock(self.memory, CID, self.path, reserved=reserved, log=self.said.append)
        self.guest = Guest(self.device, self.memory, packed=packed)

    def connect(self, text: bytes = b"CONNECT 52\n") -> socket.socket:
        """A host's program."""
        program = socket.socket(socket.AF_UNIX)
        program.settimeout(20)
        program.connect(self.path)
        program.sendall(text)
        return program

    def connected(self) -> tuple[socket.socket, int]:
        """A connection that the host began: the program's end, and the host's port."""
        program = self.connect()
        asked = self.guest.packet()
        assert (asked.op, asked.source, asked.target, asked.target_port) == (REQUEST, 2, CID, 52)
        self.guest.send(RESPONSE, 52, asked.source_port)
        assert program.recv(64) == b"OK %d\n" % asked.source_port
        return program, asked.source_port

    def close(self) -> None:
        self.guest.driver.close()
        self.memory.close()


@contextlib.contextmanager
def vsock(directory: Path, **options: object) -> Iterator[Setup]:
    made = Setup(directory, **options)  # type: ignore[arg-type]
    try:
        yield made
    finally:
        made.close()


@contextlib.contextmanager
def listening(path: str) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX) as server:
        server.settimeout(20)
        server.bind(path)
        server.listen()
        try:
            yield server
        finally:
            os.unlink(path)


@formats
def test_the_host_connects_and_both_talk(tmp_path: Path, packed: bool) -> None:
    with vsock(tmp_path, packed=packed) as v:
        program, port = v.connected()
        with program:
            program.sendall(b"to the guest")
            came = v.guest.packet()
            assert (came.op, came.data, came.source_port, came.target_port) == (RW, b"to the guest", port, 52)
            assert came.room == CREDIT
            v.guest.send(RW, 52, port, b"to the host")
            assert program.recv(64) == b"to the host"


@formats
def test_the_guest_connects(tmp_path: Path, packed: bool) -> None:
    with vsock(tmp_path, packed=packed) as v, listening(v.path + "_1234") as server:
        v.guest.send(REQUEST, 4000, 1234)
        answer = v.guest.packet()
        assert (answer.op, answer.source_port, answer.target_port) == (RESPONSE, 1234, 4000)
        program, _ = server.accept()
        with program:
            v.guest.send(RW, 4000, 1234, b"hello")
            assert program.recv(64) == b"hello"
            program.sendall(b"and back")
            assert v.guest.packet().data == b"and back"


def test_nobody_listens(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        v.guest.send(REQUEST, 4000, 99)
        assert v.guest.packet()[2:7] == (99, 4000, 0, 1, RST)
        with v.connect(b"CONNECT 52\n") as program:
            asked = v.guest.packet()
            v.guest.send(RST, 52, asked.source_port)
            assert program.recv(64) == b""
        assert v.device.connections == 0


def test_a_reserved_port_is_the_guests_root_alone(tmp_path: Path) -> None:
    with vsock(tmp_path, reserved=(1024,)) as v, listening(v.path + "_1024") as server:
        v.guest.send(REQUEST, 4000, 1024)
        assert v.guest.packet().op == RST
        v.guest.send(REQUEST, 1023, 1024)
        assert v.guest.packet().op == RESPONSE
        server.accept()[0].close()


@pytest.mark.parametrize(
    "text", [b"", b"HELLO 52\n", b"CONNECT 4294967296\n", b"CONNECT -1\n", b"CONNECT \n", b"x" * 99]
)
def test_what_is_no_request_is_closed(tmp_path: Path, text: bytes) -> None:
    with vsock(tmp_path) as v, v.connect(text) as program:
        if not text:
            program.shutdown(socket.SHUT_WR)
        with contextlib.suppress(ConnectionResetError):
            assert program.recv(64) == b""
        assert v.guest.quiet(0.01)


def test_a_request_in_pieces_with_data_behind_it(tmp_path: Path) -> None:
    with vsock(tmp_path) as v, v.connect(b"CONN") as program:
        assert v.guest.quiet()
        program.sendall(b"ECT 52\nat once")
        asked = v.guest.packet()
        v.guest.send(RESPONSE, 52, asked.source_port)
        assert program.recv(64).startswith(b"OK ")
        assert v.guest.packet().data == b"at once"


@formats
def test_no_more_is_sent_than_the_guest_has_room_for(tmp_path: Path, packed: bool) -> None:
    with vsock(tmp_path, packed=packed) as v, v.connect() as program:
        asked = v.guest.packet()
        v.guest.send(RESPONSE, 52, asked.source_port, room=1000)
        program.recv(64)
        program.sendall(bytes(3000))
        assert v.guest.packet().length == 1000
        assert v.guest.quiet()
        v.guest.send(CREDIT_UPDATE, 52, asked.source_port, room=1000, taken=400)
        assert v.guest.packet().length == 400
        v.guest.send(CREDIT_UPDATE, 52, asked.source_port, room=1000, taken=5)  # it takes back what it took
        assert v.guest.quiet()
        v.guest.send(CREDIT_UPDATE, 52, asked.source_port, room=0xFFFFFFFF, taken=0x80000000)
        assert v.guest.packet().length == 1600


def test_the_guest_is_told_what_was_taken(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        program, port = v.connected()
        with program:
            v.guest.send(CREDIT_REQUEST, 52, port)
            assert v.guest.packet()[6:10] == (CREDIT_UPDATE, 0, CREDIT, 0)
            for _ in range(9):
                v.guest.send(RW, 52, port, bytes(4000))
            assert v.guest.packet()[6:10] == (CREDIT_UPDATE, 0, CREDIT, 36000)


def fill(v: Setup, port: int) -> int:
    """Send until the device keeps as much as it gave credit for; the bytes sent."""
    sent = taken = 0
    while sent - taken < CREDIT:
        part = min(4000, CREDIT - (sent - taken))
        v.guest.send(RW, 52, port, bytes([sent % 251]) * part)
        sent += part
        while not v.guest.quiet(0):
            taken = v.guest.packet().taken
    return sent


def test_a_slow_reader_gets_everything(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        program, port = v.connected()
        with program:
            sent = fill(v, port)
            got = 0
            while got < sent:
                got += len(program.recv(1 << 16))
            assert got == sent
            v.guest.send(RW, 52, port, b"more")
            assert program.recv(9) == b"more"
            assert v.said == []


def test_more_than_credit_ends_that_connection_only(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        program, port = v.connected()
        other, other_port = v.connected()
        with program, other:
            fill(v, port)
            v.guest.send(RW, 52, port, b"x")
            while (came := v.guest.packet()).op == CREDIT_UPDATE:
                pass
            assert (came.op, came.source_port) == (RST, port)
            assert "more than it had credit for" in v.said[0]
            v.guest.send(RW, 52, other_port, b"well")
            assert other.recv(9) == b"well"


def test_an_end_of_one_direction(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        program, port = v.connected()
        with program:
            program.sendall(b"last")
            program.shutdown(socket.SHUT_WR)
            assert v.guest.packet().data == b"last"
            ended = v.guest.packet()
            assert (ended.op, ended.flags) == (SHUTDOWN, 2)
            v.guest.send(RW, 52, port, b"still")
            assert program.recv(9) == b"still"
            v.guest.send(SHUTDOWN, 52, port, flags=2)
            assert program.recv(9) == b""
            v.guest.send(SHUTDOWN, 52, port, flags=3)
            while (came := v.guest.packet()).op == SHUTDOWN:
                pass
            assert came.op == RST
            assert v.device.connections == 0


def test_the_host_closes(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        program, port = v.connected()
        program.sendall(b"last")
        program.close()
        assert v.guest.packet().data == b"last"
        ended = v.guest.packet()
        if (ended.op, ended.flags) == (SHUTDOWN, 2):  # seen to have ended its sending a moment before it was gone
            ended = v.guest.packet()
        assert (ended.op, ended.flags) == (SHUTDOWN, 3)
        v.guest.send(RW, 52, port, b"nobody reads this")
        v.guest.send(RST, 52, port)
        assert v.device.connections == 0
        assert v.guest.quiet()


def test_the_guest_closes_before_the_host_has_read(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        program, port = v.connected()
        with program:
            sent = fill(v, port)
            v.guest.send(SHUTDOWN, 52, port, flags=3)
            v.guest.send(RST, 52, port)  # its patience was short
            got = 0
            while data := program.recv(1 << 16):
                got += len(data)
            assert got == sent


def test_without_receive_buffers_nothing_is_lost(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        program, _port = v.connected()
        with program:
            v.guest.look()
            v.guest.feeding = False
            program.sendall(bytes(range(256)) * 200)
            got = b""
            for _ in range(8):
                got += v.guest.packet().data
            assert len(got) == 8 * (4096 - 44)
            assert v.guest.quiet()
            v.guest.feed()
            while len(got) < 51200:
                got += v.guest.packet().data
            assert got == bytes(range(256)) * 200


def test_a_guest_that_only_sends_waits(tmp_path: Path) -> None:
    """Answers to strays are bounded: further packets stay in the queue until the guest receives."""
    with vsock(tmp_path) as v:
        v.guest.look()
        v.guest.feeding = False
        driver, at = v.guest.driver, v.guest._base + 20 * 8192
        v.memory.write(at, HEADER.pack(CID, 2, 5, 6, 0, 1, RW, 0, 0, 0))
        back = 0
        for _ in range(10):
            for _ in range(32):
                if driver.queues[1].free:
                    driver.queues[1].add([(at, 44, False)])
            driver.ring(1)
            driver.wait_interrupt(0.01)
            back += len(driver.queues[1].collect())
        assert back == 64 + 8  # what is kept, and what the receive buffers took
        v.guest.feed()
        for _ in range(back):
            assert v.guest.packet().op == RST


def test_many_connections_and_a_limit(tmp_path: Path) -> None:
    with vsock(tmp_path) as v, listening(v.path + "_80") as server:
        accepted = []
        for port in range(2000, 2512):
            v.guest.send(REQUEST, port, 80)
            assert v.guest.packet().op == RESPONSE
            accepted.append(server.accept()[0])
        assert v.device.connections == 512
        v.guest.send(REQUEST, 3000, 80)
        assert v.guest.packet().op == RST
        for number, program in enumerate(accepted):
            v.guest.send(RW, 2000 + number, 80, b"%d" % number)
            assert program.recv(9) == b"%d" % number
        v.guest.send(RST, 2000, 80)
        v.guest.send(REQUEST, 3000, 80)
        while (came := v.guest.packet()).op != RESPONSE:
            pass
        assert came.target_port == 3000
        for program in accepted:
            program.close()


@pytest.mark.parametrize(
    ("packet", "why"),
    [
        (b"x" * 43, "a packet without a header"),
        (HEADER.pack(CID, 2, 1, 2, 9, 1, RW, 0, 0, 0) + b"12345678", "a packet that is shorter than it says"),
        (HEADER.pack(CID, 2, 1, 2, 0xFFFFFFFF, 1, RW, 0, 0, 0), "a packet that is shorter than it says"),
    ],
)
def test_a_malformed_packet_needs_a_reset(tmp_path: Path, packet: bytes, why: str) -> None:
    with vsock(tmp_path) as v:
        at = v.guest._base + 20 * 8192
        v.memory.write(at, packet)
        v.guest.driver.queues[1].add([(at, len(packet), False)])
        v.guest.driver.ring(1)
        assert v.guest.driver.wait_interrupt() & 2
        assert v.said == [f"vsock: the guest's driver must reset this device: queue 1: {why}"]


def test_strays_are_refused_and_false_senders_ignored(tmp_path: Path) -> None:
    with vsock(tmp_path) as v, listening(v.path + "_80"):
        v.guest.send(RW, 1, 2, b"x")
        assert v.guest.packet()[:7] == (2, CID, 2, 1, 0, 1, RST)
        v.guest.send(REQUEST, 1, 80, target=9)
        assert v.guest.packet()[:7] == (9, CID, 80, 1, 0, 1, RST)
        v.guest.send(REQUEST, 1, 80, kind=7)
        assert v.guest.packet()[5:7] == (7, RST)
        v.guest.send(RST, 1, 80)
        v.guest.send(REQUEST, 1, 80, source=8)
        assert v.guest.quiet()
        v.guest.send(REQUEST, 1, 80)
        assert v.guest.packet().op == RESPONSE
        v.guest.send(REQUEST, 1, 80)
        assert v.guest.packet().op == RST
        assert v.device.connections == 0
        assert v.said == []


def test_reset_ends_all_and_the_next_driver_begins_anew(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        program, _port = v.connected()
        v.guest.driver.reset()
        assert program.recv(9) == b""
        program.close()
        assert v.device.connections == 0
        waiting = v.connect()  # it waits for a driver
        v.guest = Guest(v.device, v.memory)
        asked = v.guest.packet()
        assert asked.op == REQUEST
        waiting.close()
        assert v.guest.packet().op in (RST, SHUTDOWN)


def test_hold_and_go_on(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        program, port = v.connected()
        with program:
            v.device.hold()
            program.sendall(b"meanwhile")
            assert v.guest.quiet()
            v.device.release()
            assert v.guest.packet().data == b"meanwhile"
            v.guest.send(RW, 52, port, b"yes")
            assert program.recv(9) == b"yes"


def test_a_restored_guest_is_told_that_its_connections_are_gone(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        v.connected()[0].close()
        v.device.hold()
        saved, registers, rings = v.device.state(), v.guest.driver.transport.state(), v.guest.driver.queues
        v.guest.driver.close()
        from kvmkit.testing import MmioDriver

        with MmioDriver(Vsock(v.memory, CID), v.memory) as other:
            other.device.hold()
            other.device.restore(saved)
            other.transport.restore(registers)
            other.queues = rings
            other.device.release()
            assert other.request(2, b"", 8) == struct.pack("<I", 0)


def test_sockets_are_the_owners_and_go_with_the_device(tmp_path: Path) -> None:
    with vsock(tmp_path) as v:
        assert os.stat(v.path).st_mode & 0o777 == 0o600
        with pytest.raises(BadInput, match="another process listens there"):
            Vsock(v.memory, 9, v.path)
        with pytest.raises(BadInput, match="CID"):
            Vsock(v.memory, 2)
        with pytest.raises(BadInput, match="at most"):
            Vsock(v.memory, 9, "/" + "x" * 100)
    assert os.listdir(tmp_path) == []
    with socket.socket(socket.AF_UNIX) as dead:
        dead.bind(str(tmp_path / "v"))
    with vsock(tmp_path) as v:
        v.connected()[0].close()


packets = st.tuples(
    st.sampled_from([CID, CID, CID, 3]),
    st.sampled_from([2, 2, 2, 5]),
    st.sampled_from([52, 53, 0, 0xFFFFFFFF]),
    st.sampled_from([80, 81, 1 << 30, (1 << 30) + 1]),
    st.sampled_from([0, 1, 100, 4000]),
    st.sampled_from([1, 1, 1, 0]),
    st.integers(0, 9),
    st.integers(0, 7),
    st.sampled_from([0, 100, 1 << 18, 0xFFFFFFFF]),
    st.sampled_from([0, 50, 1 << 31, 0xFFFFFFFF]),
)


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(packets, max_size=40), st.booleans())
def test_any_packets_leave_the_device_whole(tmp_path: Path, sequence: list[tuple[int, ...]], packed: bool) -> None:
    with vsock(tmp_path, packed=packed) as v, listening(v.path + "_80") as server:
        server.setblocking(False)
        programs = [v.connect()]
        for fields in sequence:
            v.guest.raw(HEADER.pack(*fields) + bytes(fields[4]))
            with contextlib.suppress(BlockingIOError):
                programs.append(server.accept()[0])
                programs[-1].send(b"data")
            v.guest.look()
        for program in programs:
            program.close()
        v.guest._came.clear()
        with v.connect(b"CONNECT 77\n") as program:
            while (asked := v.guest.packet()).op != REQUEST or asked.target_port != 77:
                pass
            v.guest.send(RESPONSE, 77, asked.source_port)
            assert program.recv(64) == b"OK %d\n" % asked.source_port
