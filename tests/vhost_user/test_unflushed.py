"""A disk's backend that is killed between a write and its flush: what qcow2 keeps in memory is written again."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver
from kvmkit.virtio import blk
from kvmkit.virtio.vhost_user import kinds
from kvmkit.virtio.vhost_user.device import VhostUserDevice

from .daemon import StorageDaemon

MIB = 1 << 20
READ, WRITE, FLUSH, DISCARD, WRITE_ZEROES = 0, 1, 4, 11, 13
OK = b"\0"
pytestmark = pytest.mark.skipif(
    not shutil.which("qemu-storage-daemon"), reason="qemu-storage-daemon is not installed (qemu-system-common)"
)


class Disk(MmioDriver):
    turn = 0

    def ask(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0) -> bytes:
        """On one queue after the other, and so in an order that no single queue knows."""
        self.turn += 1
        queue = self.turn % len(self.queues)
        return self.request(queue, struct.pack("<IIQ", kind, 0, sector) + data, room + 1)


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(tmp_path)
    yield daemon
    daemon.stop()


@pytest.fixture(params=[1, 2], ids=["one queue", "two queues"])
def disk(daemon: StorageDaemon, request: pytest.FixtureRequest) -> Iterator[Disk]:
    memory = GuestMemory(16 * MIB, shared=True)
    device = VhostUserDevice(memory, kinds.blk(request.param), str(daemon.socket))
    assert len(device.queues) == request.param
    wanted = blk.MQ | blk.SEG_MAX | blk.FLUSH | blk.DISCARD | blk.WRITE_ZEROES
    with Disk(device, memory, features=wanted) as disk:
        disk.start()
        yield disk
    memory.close()


def again(daemon: StorageDaemon) -> None:
    daemon.stop()
    daemon.start()


def test_writes_survive_without_a_flush(daemon: StorageDaemon, disk: Disk) -> None:
    device = disk.device
    assert isinstance(device, VhostUserDevice)
    image = bytearray(8 * MIB)
    for turn in range(3):
        for i in range(10):
            place = 65536 * ((7 * i + turn) % 90)
            data = os.urandom(65536)
            image[place : place + len(data)] = data
            assert disk.ask(WRITE, place // 512, data) == OK
        image[65536:131072] = bytes(65536)
        assert disk.ask(WRITE_ZEROES, 128, struct.pack("<QII", 128, 128, 0)) == OK
        data = os.urandom(3 * MIB)  # longer than one of ours
        image[MIB : 4 * MIB] = data
        assert disk.ask(WRITE, MIB // 512, data) == OK
        assert device.kept > 3 * MIB
        again(daemon)
        for place in range(0, 8 * MIB, 2 * MIB):
            assert disk.ask(READ, place // 512, room=2 * MIB) == bytes(image[place : place + 2 * MIB]) + OK
        if turn == 1:
            assert disk.ask(FLUSH) == OK
            assert device.kept == 0, "a flush on one queue covers what was answered on any"
    subprocess.run(["qemu-img", "check", "-q", "-U", str(daemon.image)], check=True)


def test_what_is_kept_has_an_end(daemon: StorageDaemon, disk: Disk) -> None:
    device = disk.device
    assert isinstance(device, VhostUserDevice)
    data = os.urandom(4 * MIB)
    most = 0
    for i in range(30):
        assert disk.ask(WRITE, 4 * MIB * i // 512, data) == OK
        most = max(most, device.kept)
    assert 60 * MIB < most < 80 * MIB
    assert device.kept < 60 * MIB
    again(daemon)
    for i in range(30):
        assert disk.ask(READ, 4 * MIB * i // 512, room=4 * MIB) == data + OK


def test_a_queue_that_is_reset_has_nothing_written_again(daemon: StorageDaemon, disk: Disk) -> None:
    """The same backend is there: what it has answered on another queue since would be undone."""
    device = disk.device
    assert isinstance(device, VhostUserDevice)
    old, new = os.urandom(4096), os.urandom(4096)
    assert disk.ask(WRITE, 8, old) == OK
    device.hold()
    device.release()
    assert disk.ask(WRITE, 8, new) == OK
    device.hold()
    device.release()
    assert disk.ask(READ, 8, room=4096) == new + OK
    again(daemon)
    assert disk.ask(READ, 8, room=4096) == new + OK
