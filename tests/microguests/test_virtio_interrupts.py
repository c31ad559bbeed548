"""A disk and a card whose driver, in ring 3, waits for interrupts: by the IOAPIC's pin, and by MSI-X."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from microguest import MicroGuest
from virtio_driver import BUFFERS, EVENT_IDX, NET_HEADER, STRIDE, Driven, Job, Transport, blk, code, net

from kvmkit.block.file import DiskFile
from kvmkit.net.stream import StreamBackend
from kvmkit.virtio.blk import Blk
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.net import Net

DEPTH, TOTAL = 16, 400
SIZE = 1000
MAC = bytes.fromhex("525400123456")
Drive = Callable[[Callable[[MicroGuest], VirtioDevice], Job, Transport, bool], Driven]

transports = pytest.mark.parametrize("transport", ["mmio", "pci"])
suppressions = pytest.mark.parametrize("event_index", [False, True], ids=["flags", "event-index"])


@pytest.fixture
def drive(guest: Callable[..., MicroGuest]) -> Iterator[Drive]:
    """Put a device and its driver on a micro-guest."""
    made: list[Driven] = []

    def put(make: Callable[[MicroGuest], VirtioDevice], job: Job, transport: Transport, event_index: bool) -> Driven:
        machine = guest(code(job, transport, suppress=not event_index), "ring3")
        made.append(Driven(machine, make(machine), job, transport, EVENT_IDX if event_index else 0))
        return made[-1]

    yield put
    for one in made:
        one.close()


def ran(driven: Driven, engine: str) -> None:
    """It came to its end, by interrupts, and none for each request."""
    driven.guest.finish()
    assert driven.guest.shown == []
    queue = driven.device.queues[driven.job.queue]
    assert queue.requests == TOTAL
    assert 0 < driven.taken <= queue.interrupts <= TOTAL
    if engine == "kvm":  # no exit for a doorbell, nor for the end of an interrupt: set-up, and the status of mmio's
        status = 2 * driven.taken if driven.bridge is None else 0
        assert driven.guest.vcpu.exits().get("memory", driven.guest.vcpu.exits().get("mmio", 0)) <= 60 + status


@transports
@suppressions
def test_a_disk_is_written(drive: Drive, engine: str, tmp_path: Path, transport: Transport, event_index: bool) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(bytes(TOTAL * STRIDE))
    driven = drive(lambda it: Blk(it.memory, DiskFile(str(path))), blk(True, DEPTH, TOTAL), transport, event_index)
    data = [os.urandom(STRIDE) for _ in range(DEPTH)]
    driven.guest.memory.write(BUFFERS, b"".join(data))
    ran(driven, engine)
    found = path.read_bytes()
    for i in range(TOTAL):
        assert found[i * STRIDE : (i + 1) * STRIDE] in data
    assert driven.written == TOTAL, "the status of each"


@transports
@suppressions
def test_a_disk_is_read(drive: Drive, engine: str, tmp_path: Path, transport: Transport, event_index: bool) -> None:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(TOTAL * STRIDE))
    driven = drive(lambda it: Blk(it.memory, DiskFile(str(path))), blk(False, DEPTH, TOTAL), transport, event_index)
    ran(driven, engine)
    assert driven.written == TOTAL * (STRIDE + 1)
    found = path.read_bytes()
    sectors = [found[i * STRIDE : (i + 1) * STRIDE] for i in range(TOTAL)]
    places = [sectors.index(driven.guest.memory.read(BUFFERS + i * STRIDE, STRIDE)) for i in range(DEPTH)]
    assert len(set(places)) == DEPTH
    assert max(places) == TOTAL - 1


@transports
@suppressions
def test_a_card_sends(drive: Drive, engine: str, transport: Transport, event_index: bool) -> None:
    ours, theirs = socket.socketpair()
    driven = drive(
        lambda it: Net(it.memory, StreamBackend(ours), MAC), net(True, SIZE, DEPTH, TOTAL), transport, event_index
    )
    frames = [os.urandom(SIZE) for _ in range(DEPTH)]
    for i, frame in enumerate(frames):
        driven.guest.memory.write(BUFFERS + i * STRIDE, bytes(NET_HEADER) + frame)
    found = bytearray()

    def take() -> None:
        while len(found) < TOTAL * (4 + SIZE) and (more := theirs.recv(1 << 16)):
            found.extend(more)

    with theirs:
        thread = threading.Thread(target=take)
        thread.start()
        ran(driven, engine)
        thread.join(20)
    one = 4 + SIZE
    assert len(found) == TOTAL * one
    for i in range(TOTAL):
        assert found[i * one : (i + 1) * one] == SIZE.to_bytes(4, "big") + frames[i % DEPTH]


@transports
@suppressions
def test_a_card_receives(drive: Drive, engine: str, transport: Transport, event_index: bool) -> None:
    ours, theirs = socket.socketpair()
    driven = drive(
        lambda it: Net(it.memory, StreamBackend(ours), MAC), net(False, SIZE, DEPTH, TOTAL), transport, event_index
    )
    frames = [MAC + os.urandom(SIZE - 6) for _ in range(TOTAL)]
    with theirs:
        thread = threading.Thread(
            target=lambda: theirs.sendall(b"".join(SIZE.to_bytes(4, "big") + one for one in frames))
        )
        thread.start()
        ran(driven, engine)
        thread.join(20)
    assert driven.written == TOTAL * (NET_HEADER + SIZE)
    last = {driven.guest.memory.read(BUFFERS + i * STRIDE + NET_HEADER, SIZE) for i in range(DEPTH)}
    assert last == set(frames[-DEPTH:])
