"""One interrupt for what came together, and none for a driver that wants none: cards, consoles, sockets.

The driver uses flags, not event indices, which would keep interrupts few by themselves.
"""

from __future__ import annotations

import socket
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from vsock_guest import CID, HEADER, REQUEST, RW

from kvmkit.memory import GuestMemory
from kvmkit.net.stream import StreamBackend
from kvmkit.testing import MmioDriver
from kvmkit.virtio.console import Console
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.net import Net
from kvmkit.virtio.vsock import Vsock

SIZE, COUNT = 64, 24
ROOM = 512
MAC = bytes.fromhex("525400123456")
FRAME = MAC + bytes.fromhex("525400abcdef88b5") + bytes(100)

formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
wishes = pytest.mark.parametrize("wanted", [True, False], ids=["wanted", "unwanted"])
Make = Callable[[Callable[[GuestMemory], VirtioDevice], bool], MmioDriver]


@pytest.fixture
def make() -> Iterator[Make]:
    memory = GuestMemory(4 << 20)
    made: list[MmioDriver] = []

    def start(device: Callable[[GuestMemory], VirtioDevice], packed: bool) -> MmioDriver:
        made.append(MmioDriver(device(memory), memory, packed=packed, events=False, size=SIZE))
        made[-1].start()
        return made[-1]

    yield start
    for driver in made:
        driver.close()
    memory.close()


def offer(driver: MmioDriver, queue: int, count: int = COUNT) -> None:
    """Buffers to receive into."""
    for i in range(count):
        driver.queues[queue].add([(driver.buffers + i * ROOM, ROOM, True)])
    driver.ring(queue)


def send(driver: MmioDriver, queue: int, *texts: bytes) -> None:
    for i, text in enumerate(texts):
        at = driver.buffers + 0x20000 + i * ROOM
        driver.memory.write(at, text)
        driver.queues[queue].add([(at, len(text), False)])
    driver.ring(queue)


def back(driver: MmioDriver, queue: int, count: int) -> None:
    """Look, without interrupts, until so many chains came back."""
    found, end = 0, time.monotonic() + 20
    while found < count:
        found += len(driver.queues[queue].collect())
        assert time.monotonic() < end, f"{found} of {count} chains came back"
        time.sleep(0.001)


def batch(driver: MmioDriver, queue: int, count: int, wanted: bool, begin: Callable[[], object]) -> None:
    """What `begin` brings while the device is held comes back with one interrupt, or none."""
    driver.queues[queue].want_interrupt(wanted)
    driver.device.hold()
    before = driver.device.queues[queue].interrupts
    begin()
    driver.device.release()
    back(driver, queue, count)
    driver.device.hold()  # what it does at the end of a round is done
    assert driver.device.queues[queue].interrupts - before == (1 if wanted else 0)
    driver.device.release()


@formats
@wishes
def test_frames(make: Make, packed: bool, wanted: bool) -> None:
    ours, theirs = socket.socketpair()
    with theirs:
        driver = make(lambda memory: Net(memory, StreamBackend(ours), MAC), packed)
        batch(driver, 1, COUNT, wanted, lambda: send(driver, 1, *[bytes(12) + FRAME] * COUNT))
        offer(driver, 0)
        block = (len(FRAME).to_bytes(4, "big") + FRAME) * COUNT
        batch(driver, 0, COUNT, wanted, lambda: theirs.sendall(block))


@formats
@wishes
def test_what_is_written_to_a_console(make: Make, packed: bool, wanted: bool, tmp_path: Path) -> None:
    driver = make(lambda memory: Console(memory, [("hvc0", str(tmp_path / "port"))]), packed)
    with socket.socket(socket.AF_UNIX) as program:
        program.connect(str(tmp_path / "port"))
        batch(driver, 1, COUNT, wanted, lambda: send(driver, 1, *[b"a line\n"] * COUNT))
        offer(driver, 0, 8)
        batch(driver, 0, 8, wanted, lambda: program.sendall(bytes(8 * ROOM)))


@formats
@wishes
def test_packets_of_sockets(make: Make, packed: bool, wanted: bool, tmp_path: Path) -> None:
    path = str(tmp_path / "v")

    def packet(op: int, data: bytes = b"") -> bytes:
        return HEADER.pack(CID, 2, 4000, 1234, len(data), 1, op, 0, 1 << 16, 0) + data

    with socket.socket(socket.AF_UNIX) as server:
        server.bind(f"{path}_1234")
        server.listen()
        driver = make(lambda memory: Vsock(memory, CID, path), packed)
        offer(driver, 0, 1)
        send(driver, 1, packet(REQUEST))
        back(driver, 1, 1)
        back(driver, 0, 1)
        program, _ = server.accept()
        with program:
            batch(driver, 1, COUNT, wanted, lambda: send(driver, 1, *[packet(RW, b"hello")] * COUNT))
            offer(driver, 0, 8)
            batch(driver, 0, 8, wanted, lambda: program.sendall(bytes(8 * ROOM)))
