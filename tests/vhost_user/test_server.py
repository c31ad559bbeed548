"""Our devices served to another VMM: our own frontend, QEMU with Linux, and frontends that send anything."""

from __future__ import annotations

import array
import os
import select
import socket
import struct
import subprocess
import sys
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmkit.block.file import DiskFile
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.memory.foreign import ForeignMemory
from kvmkit.testing import MmioDriver
from kvmkit.testing.rings import PackedRing
from kvmkit.vhost_user.link import Link, Region
from kvmkit.vhost_user.messages import PeerWrong, Request
from kvmkit.virtio import blk
from kvmkit.virtio.blk import Blk
from kvmkit.virtio.features import RING_PACKED
from kvmkit.virtio.rng import Rng
from kvmkit.virtio.vhost_user import kinds
from kvmkit.virtio.vhost_user.device import VhostUserDevice
from kvmkit.virtio.vhost_user.server import Maker, Server, listen

MIB = 1 << 20


@contextmanager
def serving(path: str, make: Maker, **options: Any) -> Iterator[tuple[Server, list[str]]]:
    said: list[str] = []
    server = Server(path, make, said.append, **options)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    try:
        yield server, said
    finally:
        server.stop()
        thread.join()
        server.close()


def make_blk(path: Path, queues: int = 1) -> Maker:
    return lambda memory, log: Blk(memory, DiskFile(str(path)), serial="served", queues=queues, log=log)


def make_rng(memory: ForeignMemory, log: Callable[[str], None]) -> Rng:
    return Rng(memory, log=log)


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(8 * MIB, shared=True)
    yield memory
    memory.close()


@pytest.mark.parametrize("queues", [1, 2])
def test_a_disk_for_our_own_frontend(memory: GuestMemory, tmp_path: Path, queues: int) -> None:
    disk, path = tmp_path / "disk.raw", str(tmp_path / "s")
    before = os.urandom(2 * MIB)
    disk.write_bytes(before)
    with serving(path, make_blk(disk, queues)) as (server, said):
        for turn in range(2):
            device = VhostUserDevice(memory, kinds.blk(queues), path)
            assert device.size == 2 * MIB
            with MmioDriver(device, memory, features=blk.FLUSH | blk.MQ) as guest:
                guest.start()

                def ask(kind: int, sector: int, data: bytes = b"", room: int = 0, guest: MmioDriver = guest) -> bytes:
                    request = struct.pack("<IIQ", kind, 0, sector) + data
                    return guest.request(sector % queues, request, room + 1)

                data = os.urandom(8192)
                assert ask(0, 16, room=65536) == before[8192 : 8192 + 65536] + b"\0"
                assert ask(1, 1001 + turn, data) == b"\0"
                assert ask(4, 0) == b"\0"
                assert disk.read_bytes()[512 * (1001 + turn) :][:8192] == data
                assert ask(8, 0, room=20) == b"served".ljust(20, b"\0") + b"\0"
                device.hold()
                device.release()
                assert ask(0, 1001 + turn, room=8192) == data + b"\0"
                with disk.open("r+b") as file:
                    file.truncate((3 + turn) * MIB)
                assert isinstance(server.device, Blk)
                server.device.resize()
                while not (why := guest.wait_interrupt()) & 2:
                    assert why  # one of a queue, that nobody had to wait for
                assert device.size == (3 + turn) * MIB
            with disk.open("r+b") as file:
                file.truncate(2 * MIB)
            server.device.resize()
        assert said == []
        assert server.served == 2


def test_entropy_and_a_driver_that_breaks_its_ring(memory: GuestMemory, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    with serving(path, make_rng) as (_, said):
        device = VhostUserDevice(memory, kinds.generic(4, 1), path)
        with MmioDriver(device, memory) as guest:
            guest.start()
            assert len(set(guest.request(0, b"", 64))) > 16
        assert said == []


def test_a_network_card(memory: GuestMemory, tmp_path: Path) -> None:
    from kvmkit.cli.serve_device import OPTIONS, _net

    path, wire = str(tmp_path / "s"), socket.socket(socket.AF_UNIX)
    wire.bind(str(tmp_path / "wire"))
    wire.listen()
    with serving(path, lambda memory, log: _net(f"socket={tmp_path}/wire", memory, log), **OPTIONS["net"]) as (_, said):
        peer, _ = wire.accept()
        peer.settimeout(20)
        device = VhostUserDevice(memory, kinds.net("52:54:00:00:00:01"), path)
        with MmioDriver(device, memory, features=1 << 15 | 1 << 5) as guest:
            guest.start()
            frame = bytes.fromhex("525400000002525400000001 88b5".replace(" ", "")) + b"x" * 50
            assert guest.request(1, bytes(12) + frame, 0) == b""
            assert peer.recv(4 + len(frame), socket.MSG_WAITALL) == struct.pack(">I", len(frame)) + frame
            at = guest.buffers + 0x8000
            guest.queues[0].add([(at, 2048, True)])
            guest.ring(0)
            answer = frame[6:12] + frame[:6] + frame[12:]
            peer.sendall(struct.pack(">I", len(answer)) + answer)
            ((_, written),) = guest.collect(0)
            assert memory.read(at, written)[12:] == answer
        peer.close()
    wire.close()
    assert [line for line in said if "let go" in line] == []


def test_a_console(memory: GuestMemory, tmp_path: Path) -> None:
    from kvmkit.cli.serve_device import _console

    path = str(tmp_path / "s")
    with serving(path, lambda memory, log: _console(f"{tmp_path}/port", memory, log)) as (server, said):
        device = VhostUserDevice(memory, kinds.generic(3, len(server.device.queues), 12), path)
        with MmioDriver(device, memory) as guest, socket.socket(socket.AF_UNIX) as program:
            guest.start()
            program.settimeout(20)
            program.connect(str(tmp_path / "port"))
            at = guest.buffers + 0x8000
            guest.queues[0].add([(at, 64, True)])
            guest.ring(0)
            program.sendall(b"typed")
            ((_, written),) = guest.collect(0)
            assert memory.read(at, written) == b"typed"
            assert guest.request(1, b"hello", 0) == b""
            assert program.recv(5, socket.MSG_WAITALL) == b"hello"
    assert said == []
    with pytest.raises(BadInput, match="give NAME=SOCKET"):
        _console("name=", ForeignMemory(4096), said.append)


def test_packed_rings_and_where_they_stand(memory: GuestMemory, tmp_path: Path) -> None:
    """A frontend that passes its guest's packed ring on as it is, takes it back after some rounds, and goes on."""
    path, size, rings, at = str(tmp_path / "s"), 8, 0x10000, 0x20000
    disk = tmp_path / "disk.raw"
    disk.write_bytes(os.urandom(MIB))
    content = disk.read_bytes()
    kick, call = os.eventfd(0), os.eventfd(0)
    start, host, _ = next(iter(memory.regions()))
    with serving(path, make_blk(disk)) as (_, said):
        link = Link(path)
        assert link.features & RING_PACKED
        link.begin(1 << 32 | RING_PACKED | 1 << 28, [Region(start, 8 * MIB, host, memory.fd, 0)])
        ring = PackedRing(memory, rings, size)
        base = 1 << 15 | 1 << 31
        for turn in range(5):
            for request, payload in (
                (Request.SET_VRING_NUM, struct.pack("<II", 0, size)),
                (Request.SET_VRING_BASE, struct.pack("<II", 0, base if turn % 2 else base & 0xFFFF)),
                (
                    Request.SET_VRING_ADDR,
                    struct.pack("<IIQQQQ", 0, 0, *(host + part for part in (rings, ring.device, ring.driver)), 0),
                ),
            ):
                link._order(request, payload)
            link._order(Request.SET_VRING_CALL, bytes(8), [call])
            link._order(Request.SET_VRING_KICK, bytes(8), [kick])
            link._order(Request.SET_VRING_ENABLE, struct.pack("<II", 0, 1))
            for i in range(7):
                sector = 100 * turn + i
                memory.write(at, struct.pack("<IIQ", 0, 0, sector))
                ring.add([(at, 16, False), (at + 0x1000, 1024, True), (at + 0x3000, 1, True)])
                if ring.publish():
                    os.eventfd_write(kick, 1)
                assert select.select([call], [], [], 20)[0]
                os.eventfd_read(call)
                assert [written for _, written in ring.collect()] == [1025]
                assert memory.read(at + 0x1000, 1024) == content[512 * sector : 512 * sector + 1024]
            link._send(Request.GET_VRING_BASE, bytes(8))
            base = struct.unpack("<II", link._answer(Request.GET_VRING_BASE, 8))[1]
            place = 3 * 7 * (turn + 1)
            expected = place % size | (place // size + 1) % 2 << 15
            assert base == expected | expected << 16
        link.close()
    assert said == []
    os.close(kick)
    os.close(call)


def message(request: int, payload: bytes = b"", flags: int = 1) -> bytes:
    return struct.pack("<III", request, flags, len(payload)) + payload


def send(path: str, data: bytes, fds: list[int]) -> None:
    with socket.socket(socket.AF_UNIX) as frontend:
        frontend.settimeout(5)
        frontend.connect(path)
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        try:
            frontend.sendmsg([data], beside)
            frontend.shutdown(socket.SHUT_WR)
            while frontend.recv(4096):
                pass
        except OSError:
            pass


def test_frontends_that_send_anything(memory: GuestMemory, tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    u64 = st.integers(0, (1 << 64) - 1)
    payload = st.one_of(
        st.binary(max_size=80),
        st.builds(lambda a, b: struct.pack("<II", a, b), st.integers(0, 3), st.integers(0, 70000)),
        st.builds(lambda *numbers: struct.pack("<6Q", *numbers), u64, u64, u64, u64, u64, u64),
        st.just(struct.pack("<IIQQQQ", 1, 0, 0, 8 * MIB, 4096, 0)),
        st.just(struct.pack("<IIQQQQ", 0, 0, 4096 + 65536, 4096 + 131072, 4096 + 196608, 0)),
        st.just(struct.pack("<Q", 1 << 32)),
        st.just(struct.pack("<Q", 0)),
    )
    requests = st.lists(
        st.tuples(st.integers(0, 41), payload, st.sampled_from([1, 9, 0]), st.integers(0, 2)), min_size=1, max_size=12
    )
    with serving(path, make_rng) as (server, _):

        @settings(max_examples=150, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
        @given(requests)
        def anything(sent: list[tuple[int, bytes, int, int]]) -> None:
            data = b"".join(message(request, payload, flags) for request, payload, flags, _ in sent)
            send(path, data, [memory.fd] * sum(count for *_, count in sent))

        anything()
        before = server.served
        device = VhostUserDevice(memory, kinds.generic(4, 1), path)
        with MmioDriver(device, memory) as guest:
            guest.start()
            assert len(guest.request(0, b"", 64)) == 64
        assert server.served == before + 1


def test_where_it_can_listen(tmp_path: Path) -> None:
    path = str(tmp_path / "s")
    listener = listen(path)
    assert os.stat(path).st_mode & 0o777 == 0o600
    with pytest.raises(BadInput, match="another process listens"):
        listen(path)
    listener.close()
    listen(path).close()  # what a dead process left is replaced
    os.unlink(path)
    Path(path).write_text("kept")
    with pytest.raises(BadInput, match="a file is there"):
        listen(path)
    assert Path(path).read_text() == "kept"
    with pytest.raises(BadInput, match="longer than"):
        listen("/tmp/" + "x" * 200)


SERVE = [sys.executable, "-m", "kvmkit", "serve-device"]


def test_serve_device_refuses(tmp_path: Path) -> None:
    def refused(*arguments: str) -> str:
        done = subprocess.run([*SERVE, *arguments], capture_output=True, text=True)
        assert done.returncode == 2
        assert "Traceback" not in done.stderr
        return done.stderr

    assert "say which disk" in refused("blk", "--socket", f"{tmp_path}/s")
    assert "no such file" in refused("blk", f"{tmp_path}/none", "--socket", f"{tmp_path}/s")
    assert "takes nothing more" in refused("rng", "x", "--socket", f"{tmp_path}/s")
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize(
    "second", [(2 * MIB, 0), (4096, 0), (0x80000, 0x80000)], ids=["can't be mapped", "without rings", "without one's"]
)
def test_memory_that_is_taken_away_is_not_used(tmp_path: Path, second: tuple[int, int]) -> None:
    """A queue whose rings are no longer there is not looked at, whatever is wrong with the memory that came."""
    server = Server(str(tmp_path / "s"), lambda memory, log: Blk(memory, served(), queues=2, log=log), print)
    ram = os.memfd_create("ram")
    os.ftruncate(ram, MIB)
    bells = [os.eventfd(0), os.eventfd(0)]

    def do(request: Request, payload: bytes, *fds: int) -> None:
        server._do(request, payload, list(fds))

    def memory(size: int, guest: int) -> None:
        do(Request.SET_MEM_TABLE, struct.pack("<IIQQQQ", 1, 0, guest, size, guest, 0), ram)

    try:
        do(Request.SET_FEATURES, struct.pack("<Q", 1 << 32))
        memory(MIB, 0)
        for index in range(2):
            at = 0x80000 * index
            do(Request.SET_VRING_NUM, struct.pack("<II", index, 8))
            do(Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", index, 0, at, at + 0x2000, at + 0x1000, 0))
            do(Request.SET_VRING_KICK, struct.pack("<Q", index), bells[index])
        assert all(queue.ready for queue in server.device.queues)
        with pytest.raises(BadInput):
            memory(*second)
        assert not any(queue.ready for queue in server.device.queues)
    finally:
        server.close()
        for fd in (ram, *bells):
            os.close(fd)


def served() -> DiskFile:
    fd = os.memfd_create("disk")
    os.ftruncate(fd, MIB)
    try:
        return DiskFile(f"/proc/self/fd/{fd}")
    finally:
        os.close(fd)


def test_what_is_no_socket_is_not_kept(tmp_path: Path) -> None:
    server = Server(str(tmp_path / "s"), make_rng, print)
    ram = os.memfd_create("ram")
    before = len(os.listdir("/proc/self/fd"))
    with pytest.raises(PeerWrong, match="no socket"):
        server._do(Request.SET_BACKEND_REQ_FD, b"", [ram])
    assert len(os.listdir("/proc/self/fd")) == before
    os.close(ram)
    server.close()
