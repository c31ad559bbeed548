"""The disk against a driver in Python: what it reads, writes and refuses."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmkit.block.file import DiskFile
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.testing.driver import MmioDriver
from kvmkit.virtio import blk
from kvmkit.virtio.blk import Blk

MIB = 1 << 20
SIZE = 2 * MIB
READ, WRITE, FLUSH, GET_ID, DISCARD, WRITE_ZEROES = 0, 1, 4, 8, 11, 13
OK, IOERR, UNSUPP = b"\0", b"\1", b"\2"

engines = pytest.mark.parametrize("uring", [True, False], ids=["uring", "threads"])
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])

Make = Callable[..., MmioDriver]


class Disk(MmioDriver):
    def ask(self, kind: int, sector: int = 0, data: bytes = b"", room: int = 0, queue: int = 0) -> bytes:
        """A request's answer: what was read, and the status."""
        return self.request(queue, struct.pack("<IIQ", kind, 0, sector) + data, room + 1)


@pytest.fixture
def path(tmp_path: Path) -> str:
    path = tmp_path / "disk.raw"
    path.write_bytes(os.urandom(SIZE))
    return str(path)


@pytest.fixture
def make(path: str) -> Iterator[Make]:
    memory = GuestMemory(8 * MIB)
    made: list[MmioDriver] = []

    def make(
        *, packed: bool = False, readonly: bool = False, direct: bool = False, features: int = 0, **options: object
    ) -> Disk:
        disk = Blk(memory, DiskFile(path, readonly=readonly, direct=direct), **options)  # type: ignore[arg-type]
        wanted = blk.SEG_MAX | blk.RO | blk.BLK_SIZE | blk.FLUSH | blk.TOPOLOGY | blk.MQ | features
        driver = Disk(disk, memory, packed=packed, features=wanted | blk.DISCARD | blk.WRITE_ZEROES)
        made.append(driver)
        driver.start()
        return driver

    yield make
    for driver in made:
        driver.close()
    memory.close()


@engines
@formats
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_what_is_written_is_read(make: Make, path: str, uring: bool, packed: bool, direct: bool) -> None:
    disk = make(uring=uring, packed=packed, direct=direct)
    assert disk.device.uses_uring == uring
    before = bytearray(Path(path).read_bytes())
    for sector, sectors in ((0, 1), (7, 3), (8, 128), (SIZE // 512 - 1, 1), (100, 256)):
        place = slice(512 * sector, 512 * (sector + sectors))
        assert disk.ask(READ, sector, room=512 * sectors) == bytes(before[place]) + OK
        data = os.urandom(512 * sectors)
        before[place] = data
        assert disk.ask(WRITE, sector, data) == OK
    assert disk.ask(FLUSH) == OK
    assert Path(path).read_bytes() == before


@engines
def test_many_at_once_in_pieces_of_any_size(make: Make, path: str, uring: bool) -> None:
    disk = make(uring=uring)
    content = Path(path).read_bytes()
    at = disk.buffers + 0x10000
    wanted = {}
    for i in range(5):
        header, answer = at + 0x20000 * i, at + 0x20000 * i + 0x1000
        disk.memory.write(header, struct.pack("<IIQ", READ, 0, 8 * i))
        # The header in two parts, the data in three of odd sizes, and the status behind the last of them.
        parts = [(header, 7, False), (header + 7, 9, False), (answer, 1, True), (answer + 1, 4000, True)]
        number = disk.queues[0].add([*parts, (answer + 4001, 96, True)], header + 64)
        wanted[number] = (answer, content[4096 * i : 4096 * (i + 1)])
    disk.ring(0)
    for number, written in disk.collect(0, 5):
        answer, data = wanted.pop(number)
        assert disk.memory.read(answer, written) == data + OK
    assert not wanted


@engines
def test_requests_beyond_the_end_and_of_odd_sizes(make: Make, path: str, uring: bool) -> None:
    disk = make(uring=uring)
    end = SIZE // 512
    for sector, size in ((end, 512), (end - 1, 1024), (1 << 63, 512), ((1 << 64) - 1, 512), (1 << 55, 512), (0, 100)):
        assert disk.ask(READ, sector, room=size)[-1:] == IOERR
        assert disk.ask(WRITE, sector, bytes(size)) == IOERR
    assert disk.ask(READ, 0) == IOERR
    assert disk.ask(99) == UNSUPP
    assert os.path.getsize(path) == SIZE
    assert not disk.register(0x70) & 64


def test_identity_and_configuration(make: Make) -> None:
    disk = make(serial="four-and-twenty-letters!", queues=3)
    assert disk.ask(GET_ID, room=20) == b"four-and-twenty-letters!"[:20] + OK
    assert disk.register(0x100, 8) == SIZE // 512
    assert disk.register(0x100 + 20) == 512
    assert disk.register(0x100 + 24, 1) == 3  # 4096 bytes
    assert disk.register(0x100 + 34, 2) == 3
    for queue in range(3):
        assert len(disk.ask(READ, room=512, queue=queue)) == 513


def test_discard_and_zeroes(make: Make, path: str) -> None:
    disk = make()
    content = bytearray(Path(path).read_bytes())
    blocks = os.stat(path).st_blocks
    assert disk.ask(DISCARD, data=struct.pack("<QII", 8, 1024, 0)) == OK
    assert os.stat(path).st_blocks < blocks
    content[8 * 512 : (8 + 1024) * 512] = bytes(1024 * 512)
    for flags, sector in ((0, 2000), (1, 3000)):
        assert disk.ask(WRITE_ZEROES, data=struct.pack("<QIIQII", sector, 3, flags, sector + 5, 1, flags)) == OK
        for at, count in ((sector, 3), (sector + 5, 1)):
            content[at * 512 : (at + count) * 512] = bytes(count * 512)
    assert Path(path).read_bytes() == content
    for segment in ((SIZE // 512, 1, 0), (0, (1 << 32) - 1, 0), ((1 << 64) - 1, 2, 0)):
        assert disk.ask(DISCARD, data=struct.pack("<QII", *segment)) == IOERR
        assert disk.ask(WRITE_ZEROES, data=struct.pack("<QII", *segment)) == IOERR
    assert disk.ask(DISCARD, data=struct.pack("<QII", 0, 1, 1)) == UNSUPP
    assert disk.ask(WRITE_ZEROES, data=struct.pack("<QII", 0, 1, 2)) == UNSUPP
    assert disk.ask(WRITE_ZEROES, data=b"short") == IOERR
    assert disk.ask(WRITE_ZEROES, data=bytes(16 * 17)) == IOERR
    assert Path(path).read_bytes() == content


def test_one_that_is_only_read(make: Make, path: str) -> None:
    disk = make(readonly=True)
    before = Path(path).read_bytes()
    assert disk.device.accepted & blk.RO
    assert disk.ask(READ, room=512) == before[:512] + OK
    assert disk.ask(WRITE, data=bytes(512)) == IOERR
    assert disk.ask(WRITE_ZEROES, data=struct.pack("<QII", 0, 1, 0)) == IOERR
    assert Path(path).read_bytes() == before


@engines
def test_a_file_that_grows_and_one_that_shrinks(make: Make, path: str, uring: bool) -> None:
    disk = make(uring=uring)
    os.truncate(path, 2 * SIZE)
    assert disk.device.resize() == 2 * SIZE
    assert disk.wait_interrupt() == 2
    assert disk.register(0x100, 8) == 2 * SIZE // 512
    assert disk.ask(READ, SIZE // 512, room=512) == bytes(512) + OK
    os.truncate(path, SIZE)  # behind our back
    assert disk.ask(READ, SIZE // 512, room=512)[-1:] == IOERR
    assert disk.ask(READ, SIZE // 512 - 1, room=1024)[-1:] == IOERR


@formats
def test_requests_without_header_or_status_need_a_reset(make: Make, packed: bool) -> None:
    disk = make(packed=packed)
    for parts in ([(disk.buffers, 15, False), (disk.buffers + 64, 1, True)], [(disk.buffers, 16, False)]):
        disk.queues[0].add(parts)
        disk.ring(0)
        assert disk.wait_interrupt() & 2
        assert disk.register(0x70) & 64
        disk.start()
        assert disk.ask(FLUSH) == OK


@engines
def test_reset_under_load(make: Make, path: str, uring: bool) -> None:
    disk = make(uring=uring)
    for turn in range(20):
        at = disk.buffers + 0x10000
        for i in range(5):
            disk.memory.write(at + 0x2000 * i, struct.pack("<IIQ", WRITE, 0, 16 * i) + bytes([turn]) * 4096)
            disk.queues[0].add([(at + 0x2000 * i, 16 + 4096, False), (at + 0x2000 * i + 0x1800, 1, True)])
        disk.ring(0)
        disk.start()
        # Nothing of before the reset is under way any more: this is the last word.
        assert disk.ask(WRITE, 0, b"last" * 128) == OK
        assert disk.ask(READ, 0, room=512) == b"last" * 128 + OK
    assert Path(path).stat().st_size == SIZE


def test_a_disk_is_locked_while_it_is_written(make: Make, path: str) -> None:
    disk = make()
    for readonly in (False, True):
        with pytest.raises(BadInput, match=r"by another VM"):
            DiskFile(path, readonly=readonly)
    disk.close()
    first, second = DiskFile(path, readonly=True), DiskFile(path, readonly=True)
    with pytest.raises(BadInput, match="in use"):
        DiskFile(path)
    first.close()
    second.close()
    DiskFile(path).close()


def bad_disks(directory: Path) -> dict[str, str]:
    (directory / "odd.raw").write_bytes(bytes(1000))
    (directory / "empty.raw").write_bytes(b"")
    (directory / "x.qcow2").write_bytes(b"QFI\xfb" + bytes(1020))
    os.mkfifo(directory / "fifo")
    return {
        "odd.raw": "not a multiple of 512",
        "empty.raw": "truncate -s",
        "x.qcow2": "qemu-img convert",
        "fifo": "neither a file nor a block device",
        "missing": "no such file",
        ".": "a directory",
    }


def test_files_that_are_no_disk(tmp_path: Path) -> None:
    for name, why in bad_disks(tmp_path).items():
        before = len(os.listdir("/proc/self/fd"))
        with pytest.raises(BadInput, match=why):
            DiskFile(str(tmp_path / name))
        assert len(os.listdir("/proc/self/fd")) == before, name


def test_rate_limits_change_while_it_works(make: Make) -> None:
    disk = make()
    disk.device.set_limit(operations=100, operation_burst=1)
    began = time.monotonic()
    for _ in range(21):
        disk.ask(READ, room=512)
    assert time.monotonic() - began >= 0.18, "20 more than the burst, at 100 a second"
    disk.device.set_limit(bytes=1 << 20, byte_burst=4096)
    began = time.monotonic()
    for _ in range(5):
        disk.ask(READ, room=65536)
    assert time.monotonic() - began >= 0.2, "256 KiB before the last, at 1 MiB a second"
    disk.device.set_limit(bytes=1, byte_burst=1)  # so slow that it never ends by itself
    for i in range(3):
        at = disk.buffers + 0x10000 + 0x1000 * i
        disk.memory.write(at, struct.pack("<IIQ", READ, 0, 0))
        disk.queues[0].add([(at, 16, False), (at + 64, 513, True)])
    disk.ring(0)
    assert len(disk.collect(0, 1)) == 1
    assert disk.wait_interrupt(0.05) == 0
    disk.device.set_limit()
    assert len(disk.collect(0, 2)) == 2
    disk.device.set_limit(bytes=1, byte_burst=1)
    disk.ask(READ, room=512)
    disk.start()  # a reset does not wait for it
    with pytest.raises(BadInput, match="rate limit"):
        disk.device.set_limit(bytes=-1)
