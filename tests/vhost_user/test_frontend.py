"""Devices that another process serves: a good backend, one that goes away, and bad ones."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmkit.errors import BadInput, HostError
from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver, PciDriver
from kvmkit.vhost_user import link
from kvmkit.virtio.vhost_user import kinds
from kvmkit.virtio.vhost_user.device import VhostUserDevice

from .backend import INDIRECT, VERSION_1, Backend

MIB = 1 << 20
KIND = kinds.generic(63, 2, 8)
transports = pytest.mark.parametrize("driver", [MmioDriver, PciDriver], ids=["mmio", "pci"])
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(8 * MIB, shared=True)
    yield memory
    memory.close()


@pytest.fixture
def path(tmp_path: Path) -> str:
    return str(tmp_path / "s")


class Said(list[str]):
    def __call__(self, text: str) -> None:
        self.append(text)


def until(condition: Callable[[], object]) -> None:
    end = time.monotonic() + 20
    while not condition():
        assert time.monotonic() < end, "it did not come to that"
        time.sleep(0.01)


@transports
@formats
@pytest.mark.parametrize("features", [VERSION_1 | INDIRECT | 1, VERSION_1 | 1], ids=["indirect", "direct"])
def test_requests_go_there_and_back(
    memory: GuestMemory, path: str, driver: type[MmioDriver], packed: bool, features: int
) -> None:
    with Backend(path, features=features) as backend:
        device = VhostUserDevice(memory, KIND, path)
        with driver(device, memory, packed=packed, features=1) as guest:
            assert guest.start() & 1
            assert backend.agreed & 0xFFFFFF == 1
            for i in range(40):
                data = os.urandom(1 + 61 * i)
                assert guest.request(i % 2, data, 2 * len(data), table=i % 3 == 0 and features & INDIRECT != 0) == data
            guest.reset()
            guest.start()
            assert guest.request(0, b"again", 5) == b"again"
            assert device.in_flight(0) == 0


def test_configuration(memory: GuestMemory, path: str) -> None:
    with Backend(path, config=b"12345678") as backend:
        device = VhostUserDevice(memory, KIND, path)
        with MmioDriver(device, memory) as guest:
            guest.start()
            assert struct.pack("<I", guest.register(0x104)) == b"5678"
            guest.set(0x100, 0x78, size=1)
            until(lambda: backend.config == b"x2345678")
            before = guest.register(0xFC)
            backend.change_config(b"new one!")
            assert guest.wait_interrupt() & 2
            assert struct.pack("<I", guest.register(0x100)) == b"new "
            assert guest.register(0xFC) != before


@formats
def test_what_a_dead_backend_had_goes_to_the_next(memory: GuestMemory, path: str, packed: bool) -> None:
    said = Said()
    first = Backend(path, hold=True)
    device = VhostUserDevice(memory, KIND, path, log=said)
    with MmioDriver(device, memory, packed=packed, features=1) as guest:
        guest.start()
        at = guest.buffers
        for i in range(6):
            memory.write(at + 64 * i, b"%04d" % i)
            guest.queues[0].add([(at + 64 * i, 4, False), (at + 0x1000 + 64 * i, 4, True)])
        guest.ring(0)
        until(lambda: len(first.held) == 6)
        first.close()
        until(lambda: not device.connected)
        guest.queues[0].add([(at + 64 * 5, 4, False), (at + 0x2000, 4, True)])  # while there is none
        guest.ring(0)
        with Backend(path):
            assert len(guest.collect(0, 7)) == 7
            assert [memory.read(at + 0x1000 + 64 * i, 4) for i in range(6)] == [b"%04d" % i for i in range(6)]
            assert memory.read(at + 0x2000, 4) == b"0005"
            until(lambda: device.reconnects == 1)
            device.hold()
            device.release()
            assert guest.request(0, b"on", 2) == b"on"
    assert "is gone" in said[0]
    assert "serves it again" in said[1]


SPOILERS: dict[str, Callable[[int, int], tuple[int, int]]] = {
    "beyond the ring": lambda head, written: (head + 300, written),
    "not given": lambda head, written: (head ^ 255, written),
    "one byte more": lambda head, written: (head, written + 1),
    "much more": lambda head, written: (head, 1 << 31),
}


@pytest.mark.parametrize("spoil", SPOILERS.values(), ids=SPOILERS.keys())
def test_a_backend_that_spoils_its_ring(
    memory: GuestMemory, path: str, spoil: Callable[[int, int], tuple[int, int]]
) -> None:
    said = Said()
    bad = Backend(path, spoil=spoil)
    device = VhostUserDevice(memory, KIND, path, log=said)
    with MmioDriver(device, memory) as guest:
        guest.start()
        at = guest.buffers
        memory.write(at, b"data")
        guest.queues[0].add([(at, 4, False), (at + 0x1000, 4, True)])
        guest.ring(0)
        until(lambda: said)
        bad.close()
        with Backend(path):
            assert len(guest.collect(0)) == 1
            assert memory.read(at + 0x1000, 4) == b"data"
            assert guest.request(1, b"on", 2) == b"on"
    assert "its backend is gone (it " in said[0]


def header(size: int, request: int = 1, flags: int = 5) -> bytes:
    return struct.pack("<III", request, flags, size)


@pytest.mark.parametrize(
    "message",
    [
        header(1 << 30),
        header(7) + bytes(7),
        header(8, flags=1) + bytes(8),
        header(8, flags=7) + bytes(8),
        header(8, request=77) + bytes(8),
        b"\xff" * 64,
        b"\0",
        b"HTTP/1.1 400 Bad Request\r\n\r\n",
    ],
)
def test_a_backend_that_answers_garbage(
    memory: GuestMemory, path: str, message: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ANSWER_SECONDS", 0.2)
    refused = pytest.raises(HostError, match="no vhost-user backend")
    with Backend(path, answer=lambda request, payload: message), refused:
        VhostUserDevice(memory, KIND, path, wait=0)


@pytest.mark.parametrize("request_", [24, 11, 8, 5], ids=["config", "base", "num", "memory"])
def test_a_backend_that_turns_bad_later(
    memory: GuestMemory, path: str, request_: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(link, "ANSWER_SECONDS", 0.3)
    said = Said()
    bad = Backend(path)
    device = VhostUserDevice(memory, KIND, path, log=said)
    bad.answer = lambda request, payload: header(3, request) + b"bad" if request == request_ else None
    with MmioDriver(device, memory) as guest:
        guest.start()
        if request_ == 24:
            bad.change_config(b"anything")
        if request_ == 11:
            assert guest.request(0, b"on", 2) == b"on"
            guest.reset()
        until(lambda: said)
        if request_ == 11:
            guest.start()
        bad.close()
        with Backend(path):
            assert guest.request(1, b"on", 2) == b"on"


def test_another_backend_that_can_less_is_refused(memory: GuestMemory, path: str) -> None:
    said = Said()
    first = Backend(path)
    device = VhostUserDevice(memory, KIND, path, log=said)
    with MmioDriver(device, memory, features=1) as guest:
        guest.start()
        first.close()
        with Backend(path, features=VERSION_1 | INDIRECT):
            until(lambda: len(said) == 2)
        assert "can't be used: it lacks features" in said[1]
        with Backend(path):
            assert guest.request(0, b"on", 2) == b"on"


def test_the_end_of_a_file_system_is_an_error_for_the_guest(memory: GuestMemory, path: str) -> None:
    said = Said()
    backend = Backend(path, hold=True)
    device = VhostUserDevice(memory, kinds.fs("tag"), path, log=said)
    with MmioDriver(device, memory) as guest:
        guest.start()
        at = guest.buffers
        memory.write(at, struct.pack("<IIQ", 40, 3, 4711) + bytes(24))
        guest.queues[1].add([(at, 40, False), (at + 0x1000, 120, True)])
        guest.ring(1)
        until(lambda: backend.held)
        backend.close()
        assert guest.collect(1)[0][1] == 16
        assert struct.unpack("<IiQ", memory.read(at + 0x1000, 16)) == (16, -107, 4711)
        sent = struct.pack("<IIQ", 40, 3, 4712) + bytes(24)
        assert struct.unpack("<IiQ", guest.request(1, sent, 120)) == (16, -107, 4712)
        init = struct.pack("<IIQ", 40, 26, 1) + bytes(24)
        assert struct.unpack("<IiQ", guest.request(1, init, 120)) == (16, -107, 1), "there is none to begin with"
        assert len(said) == 1
        with Backend(path) as backend:
            until(lambda: device.reconnects == 1)
            assert struct.unpack("<IiQ", guest.request(1, sent, 120)) == (16, -107, 4712), "of the session before"
            assert guest.request(1, init, 40) == init, "a session begins: it is the backend's"
            assert guest.request(1, sent, 40) == sent
            assert guest.request(0, sent, 40) == sent
        until(lambda: not device.connected)
        assert struct.unpack("<IiQ", guest.request(1, sent, 120)) == (16, -107, 4712)
    assert "until it mounts it again" in said[0]
    assert "has to unmount" in said[1]


def test_what_can_not_be(memory: GuestMemory, path: str) -> None:
    with pytest.raises(HostError, match="no process serves"):
        VhostUserDevice(memory, KIND, path, wait=0)
    Path(path).write_text("")
    with pytest.raises(HostError, match="no process serves"):
        VhostUserDevice(memory, KIND, path, wait=0)
    with Backend(path, features=INDIRECT), pytest.raises(BadInput, match="modern"):
        VhostUserDevice(memory, KIND, path)
    with Backend(path, queues=1), pytest.raises(BadInput, match="up to 1 queues"):
        VhostUserDevice(memory, KIND, path)
    private = GuestMemory(MIB)
    with pytest.raises(BadInput, match="shared"):
        VhostUserDevice(private, KIND, path, wait=0)
    private.close()
