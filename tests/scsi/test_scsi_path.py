"""SCSI commands through the queue: those that are done without Python, many at once, and how they fail."""

from __future__ import annotations

import os
import struct
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from kvmkit.block.file import DiskFile
from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver
from kvmkit.virtio.scsi.cdrom import CdRom
from kvmkit.virtio.scsi.device import Scsi, encode
from kvmkit.virtio.scsi.disk import Disk
from kvmkit.virtio.scsi.medium import FileMedium
from kvmkit.virtio.scsi.target import Targets
from kvmkit.virtio.scsi.unit import LogicalUnit

MIB = 1 << 20
SIZE = 2 * MIB
HEAD = 108
CONTROL, EVENT, REQUEST = 0, 1, 2
GOOD, CHECK = 0, 2
Answer = tuple[int, int, int, tuple[int, int, int], bytes]
"""Response, status, bytes left, (key, code, qualifier), data."""

engines = pytest.mark.parametrize("uring", [True, False], ids=["uring", "threads"])


class Adapter(MmioDriver):
    device: Scsi

    def request_bytes(self, cdb: str, data: bytes = b"", target: int = 0, tag: int = 7, attribute: int = 0) -> bytes:
        head = encode(target, 0) + struct.pack(">QBBB", tag, attribute, 0, 0)
        return head + bytes.fromhex(cdb).ljust(32, b"\0") + data

    def do(self, cdb: str, room: int = 0, data: bytes = b"", target: int = 0, attribute: int = 0) -> Answer:
        answer = self.request(REQUEST, self.request_bytes(cdb, data, target, attribute=attribute), HEAD + room)
        return decode(answer)

    def manage(self, function: int, tag: int = 0, target: int = 0) -> int:
        data = struct.pack("<II", 0, function) + encode(target, 0) + struct.pack(">Q", tag)
        return self.request(CONTROL, data, 1)[0]

    def offer(self, place: int, cdb: str, *, target: int = 0, queue: int = REQUEST, tag: int = 7) -> None:
        """A command without data of the driver's, at one of 16 places in memory; `answer_at` has what came back."""
        at = self.buffers + 0x10000 + 0x3000 * place
        self.memory.write(at, self.request_bytes(cdb, target=target, tag=tag))
        self.queues[queue].add([(at, 51, False), (at + 0x1000, HEAD + 4096, True)])
        self.ring(queue)

    def answer_at(self, place: int, length: int = HEAD + 4096) -> Answer:
        return decode(self.memory.read(self.buffers + 0x11000 + 0x3000 * place, length))


def decode(answer: bytes) -> Answer:
    length, left, _, status, response = struct.unpack_from("<IIHBB", answer)
    sense = answer[12 : 12 + length].ljust(14, b"\0")
    return response, status, left, (sense[2], sense[12], sense[13]), answer[HEAD:]


@pytest.fixture
def path(tmp_path: Path) -> Path:
    path = tmp_path / "disk"
    path.write_bytes(os.urandom(SIZE))
    return path


Make = Callable[..., Adapter]


@pytest.fixture
def make(path: Path) -> Iterator[Make]:
    memory = GuestMemory(8 * MIB)
    made: list[tuple[Adapter, FileMedium]] = []

    def make(
        *, uring: bool = True, direct: bool = False, readonly: bool = False, optical: bool = False, queues: int = 1
    ) -> Adapter:
        medium = FileMedium(DiskFile(str(path), readonly=readonly, direct=direct))
        unit: LogicalUnit = CdRom(medium) if optical else Disk(medium)
        targets = Targets()
        targets.add(0, 0, unit)
        adapter = Adapter(Scsi(memory, targets, queues=queues, uring=uring), memory, features=7)
        made.append((adapter, medium))
        adapter.start()
        assert adapter.device.uses_uring == uring
        assert adapter.do("00" * 6)[3] == (6, 0x29, 0)
        return adapter

    yield make
    for adapter, medium in made:
        adapter.close()
        medium.close()
    memory.close()


@engines
@pytest.mark.parametrize("direct", [False, True], ids=["cached", "direct"])
def test_blocks_of_any_size_and_place(make: Make, path: Path, uring: bool, direct: bool) -> None:
    adapter = make(uring=uring, direct=direct)
    content = bytearray(path.read_bytes())
    for first, count in ((0, 1), (3, 5), (8, 128), (SIZE // 512 - 1, 1), (77, 1000)):
        place = slice(512 * first, 512 * (first + count))
        read = f"88 00 {first:016x} {count:08x} 00 00"
        assert adapter.do(read, 512 * count) == (0, GOOD, 0, (0, 0, 0), bytes(content[place]))
        assert adapter.do(read, 512 * count + 100)[2] == 100
        content[place] = os.urandom(512 * count)
        written = adapter.do(f"2a 08 {first:08x} 00 {count:04x} 00", data=bytes(content[place]))
        assert written == (0, GOOD, 0, (0, 0, 0), b"")
    assert adapter.do("35" + "00" * 9)[:2] == (0, GOOD)
    assert path.read_bytes() == content
    assert adapter.device.requests_in_python == 1, "the first, which learned of the power-on"


@engines
def test_many_commands_at_once(make: Make, path: Path, uring: bool) -> None:
    adapter = make(uring=uring)
    content = path.read_bytes()
    at = adapter.buffers + 0x10000
    wanted = {}
    for i in range(5):
        request, answer = at + 0x4000 * i, at + 0x4000 * i + 0x1000
        adapter.memory.write(request, adapter.request_bytes(f"28 00 {8 * i:08x} 00 0008 00", tag=i))
        # The response and the data in parts that are not theirs.
        parts = [(request, 20, False), (request + 20, 31, False), (answer, 100, True), (answer + 100, 9, True)]
        number = adapter.queues[REQUEST].add([*parts, (answer + 109, 4095, True)], request + 0x100)
        wanted[number] = (answer, content[4096 * i : 4096 * (i + 1)])
    adapter.ring(REQUEST)
    for number, written in adapter.collect(REQUEST, 5):
        answer, data = wanted.pop(number)
        assert decode(adapter.memory.read(answer, written)) == (0, GOOD, 0, (0, 0, 0), data)
    assert not wanted


@engines
def test_mistakes_have_the_sense_data_that_python_gives_them(make: Make, uring: bool) -> None:
    adapter = make(uring=uring)
    end = SIZE // 512
    for cdb, room, data, sense in (
        (f"28 00 {end:08x} 00 0001 00", 512, b"", (5, 0x21, 0)),
        (f"8a 00 {end - 1:016x} 00000002 00 00", 0, bytes(1024), (5, 0x21, 0)),
        ("88 00 ffffffffffffffff ffffffff 00 00", 512, b"", (5, 0x21, 0)),
        ("28 20 00000000 00 0001 00", 512, b"", (5, 0x24, 0)),
        ("28 00 00000000 00 0001 04", 512, b"", (5, 0x24, 0)),
        ("2a 00 00000000 00 0002 00", 0, bytes(512), (5, 0x1A, 0)),
        ("42 00 00000000 00 0018 00", 0, bytes(9), (5, 0x1A, 0)),
        ("93 00 0000000000000000 00000000 00 00", 0, bytes(512), (5, 0x24, 0)),
    ):
        assert adapter.do(cdb, room, data)[:4] == (0, CHECK, adapter_left(room), sense), cdb
    assert adapter.do("28 00 00000000 00 0001 00", 511)[0] == 1, "overrun"
    assert adapter.do("28 00 00000000 00 0000 00", 0)[:2] == (0, GOOD)


def adapter_left(room: int) -> int:
    return room


@engines
def test_a_host_that_fails(make: Make, path: Path, uring: bool) -> None:
    adapter = make(uring=uring)
    os.truncate(path, 4096)
    answer = adapter.request(REQUEST, adapter.request_bytes("28 00 00000010 00 0001 00"), HEAD + 512)
    assert decode(answer)[:4] == (0, CHECK, 512, (3, 0x11, 0))
    assert answer[12] == 0xF0, "with the block"
    assert answer[15:19] == (16).to_bytes(4, "big")
    assert len(answer) == HEAD
    assert adapter.do("28 00 00000000 00 0008 00", 4096)[:2] == (0, GOOD)


@engines
def test_space_given_back_and_zeros(make: Make, path: Path, uring: bool) -> None:
    adapter = make(uring=uring)
    content = bytearray(path.read_bytes())
    blocks = os.stat(path).st_blocks
    extents = struct.pack(">QIIQII", 8, 1024, 0, 2000, 3, 0)
    parameters = struct.pack(">HHI", 6 + len(extents), len(extents), 0) + extents
    assert adapter.do(f"42 00 00000000 00 {len(parameters):04x} 00", data=parameters)[:2] == (0, GOOD)
    assert os.stat(path).st_blocks < blocks
    assert adapter.do("93 08 0000000000000bb8 00000010 00 00", data=bytes(512))[:2] == (0, GOOD)
    assert adapter.do("41 00 00000c00 00 0002 00", data=bytes(512))[:2] == (0, GOOD)
    assert adapter.do("93 01 0000000000000d00 00000002 00 00")[:2] == (0, GOOD)
    assert adapter.device.requests_in_python == 1
    assert adapter.do("93 00 0000000000000e00 00000002 00 00", data=b"s" * 512)[:2] == (0, GOOD)
    for first, count, what in ((8, 1024, 0), (2000, 3, 0), (3000, 16, 0), (3072, 2, 0), (3328, 2, 0), (3584, 2, 115)):
        content[512 * first : 512 * (first + count)] = bytes([what]) * (512 * count)
    assert path.read_bytes() == content
    beyond = struct.pack(">HHI", 22, 16, 0) + struct.pack(">QII", SIZE // 512 - 1, 2, 0)
    assert adapter.do("42 00 00000000 00 0018 00", data=beyond)[3] == (5, 0x21, 0)
    assert path.read_bytes() == content


def test_one_that_is_only_read_and_a_disc(make: Make, path: Path) -> None:
    content = path.read_bytes()
    adapter = make(readonly=True)
    assert adapter.do("2a 00 00000000 00 0001 00", data=bytes(512))[3] == (7, 0x27, 0)
    assert adapter.do("35" + "00" * 9)[:2] == (0, GOOD)
    disc = make(optical=True, readonly=True)
    assert disc.do("28 00 00000003 00 0002 00", 4096)[4] == content[6144:10240]
    assert disc.do("2a 00 00000000 00 0001 00", data=bytes(2048))[3] == (5, 0x20, 0)
    assert disc.do("28 00 00000400 00 0001 00", 2048)[3] == (5, 0x21, 0)
    assert path.read_bytes() == content


def test_what_a_unit_has_to_say_comes_before_its_data(make: Make, path: Path) -> None:
    adapter = make()
    unit = adapter.device.targets.find(0, 0)
    assert unit is not None
    read = "28 00 00000000 00 0001 00"
    assert adapter.do(read, 512)[1] == GOOD
    os.truncate(path, 2 * SIZE)
    unit.medium.file.size = 2 * SIZE
    unit.resized()
    assert adapter.do(read, 512)[3] == (6, 0x2A, 9)
    assert adapter.do(f"28 00 {SIZE // 512:08x} 00 0001 00", 512)[4] == bytes(512)
    assert adapter.do("1b 00 00 00 00 00")[1] == GOOD
    assert adapter.do(read, 512)[3] == (2, 4, 2)
    assert adapter.do("1b 00 00 00 01 00")[1] == GOOD
    assert adapter.do(read, 512)[1] == GOOD
    assert adapter.manage(5) == 0, "a reset of the unit"
    assert adapter.do(read, 512)[3] == (6, 0x29, 3)


def test_tasks_are_managed(make: Make, path: Path) -> None:
    adapter = make()
    assert adapter.manage(6, 7) == 0, "no such task"
    assert adapter.manage(7) == 0
    assert adapter.manage(0, 7) == 0
    assert adapter.manage(5, target=3) == 3
    # What was offered before the driver gave up on it has ended when it hears so.
    for turn in range(50):
        at = adapter.buffers + 0x10000
        data = bytes([turn]) * 4096
        adapter.memory.write(at, adapter.request_bytes("2a 00 00000000 00 0008 00", data, tag=turn))
        adapter.queues[REQUEST].add([(at, 51 + 4096, False), (at + 0x2000, HEAD, True)])
        adapter.queues[REQUEST].publish()
        adapter.vm.write(0xFEB00000 + 0x50, 4, REQUEST)
        assert adapter.manage((0, 1, 3)[turn % 3], turn) == 0
        assert len(adapter.queues[REQUEST].collect()) == 1
        assert path.read_bytes()[:4096] == data
    # An ordered task stands behind all that came before it.
    assert adapter.do("28 00 00000000 00 0001 00", 512, attribute=1)[4] == data[:512]


@engines
def test_units_and_discs_come_and_go_under_load(make: Make, path: Path, tmp_path: Path, uring: bool) -> None:
    adapter = make(uring=uring)
    other = tmp_path / "other"
    other.write_bytes(b"o" * SIZE)
    at = adapter.memory.size - 4096
    for turn in range(10):
        for i in range(4):
            place = adapter.buffers + 0x10000 + 0x3000 * i
            adapter.memory.write(place, adapter.request_bytes(f"28 00 {8 * i:08x} 00 0008 00"))
            adapter.queues[REQUEST].add([(place, 51, False), (place + 0x1000, HEAD + 4096, True)])
        adapter.ring(REQUEST)
        adapter.queues[EVENT].add([(at, 16, True)])
        adapter.ring(EVENT)
        medium = FileMedium(DiskFile(str(other), readonly=True))
        adapter.device.plug(4, 0, CdRom(medium))
        assert adapter.collect(EVENT)[0][1] == 16
        assert adapter.memory.read(at, 16) == struct.pack("<I8sI", 1, encode(4, 0), 1)
        assert len(adapter.collect(REQUEST, 4)) == 4
        assert adapter.do("00" * 6, target=4)[3] == (6, 0x29, 0)
        assert adapter.do("28 00 00000000 00 0001 00", 2048, target=4)[4] == b"o" * 2048
        drive = adapter.device.targets.find(4, 0)
        adapter.device.still(drive.remove)
        assert adapter.do("28 00 00000000 00 0001 00", 2048, target=4)[3] == (2, 0x3A, 0)
        adapter.device.still(lambda drive=drive, medium=medium: drive.insert(medium))
        assert adapter.do("28 00 00000000 00 0001 00", 2048, target=4)[3] == (6, 0x28, 0)
        assert adapter.do("28 00 00000000 00 0001 00", 2048, target=4)[4] == b"o" * 2048, turn
        adapter.device.unplug(4, 0)
        medium.close()
        assert adapter.do("28 00 00000000 00 0001 00", 2048, target=4)[0] == 3, "no such target"
        adapter.queues[EVENT].add([(at, 16, True)])
        adapter.ring(EVENT)
        assert adapter.collect(EVENT)[0][1] == 16


@engines
def test_queues_beside_each_other(make: Make, path: Path, uring: bool) -> None:
    adapter = make(uring=uring, queues=3)
    content = path.read_bytes()
    assert adapter.register(0x100) == 3
    for turn in range(3):
        for i in range(9):
            adapter.offer(i, f"28 00 {8 * i + turn:08x} 00 0008 00", queue=REQUEST + i % 3)
        for queue in range(3):
            assert len(adapter.collect(REQUEST + queue, 3)) == 3
        for i in range(9):
            first = 512 * (8 * i + turn)
            assert adapter.answer_at(i) == (0, GOOD, 0, (0, 0, 0), content[first : first + 4096])
    # Task management ends what any queue was offered.
    for i in range(6):
        adapter.offer(i, f"28 00 {8 * i:08x} 00 0008 00", queue=REQUEST + i % 3)
    assert adapter.manage(5) == 0
    assert sum(len(adapter.queues[REQUEST + queue].collect()) for queue in range(3)) == 6


@engines
def test_a_limit_is_one_units(make: Make, path: Path, tmp_path: Path, uring: bool) -> None:
    adapter = make(uring=uring)
    other = tmp_path / "other"
    other.write_bytes(b"o" * SIZE)
    medium = FileMedium(DiskFile(str(other)))
    adapter.device.plug(1, 0, Disk(medium))
    assert adapter.do("00" * 6, target=1)[3] == (6, 0x29, 0)
    read = "28 00 00000000 00 0008 00"
    device = adapter.device
    device.set_unit_limit(0, 0, operations=0.001, operation_burst=1)
    for i in range(4):
        adapter.offer(i, read)
    assert len(adapter.collect(REQUEST, 2)) == 2, "what the burst lets through, and the one that makes debts"
    for i in range(4, 8):
        adapter.offer(i, read, target=1)
    assert len(adapter.collect(REQUEST, 4)) == 4, "the other unit is not held up"
    assert [adapter.answer_at(i)[:2] for i in range(4, 8)] == [(0, GOOD)] * 4
    assert device.waiting == 2
    assert adapter.do("35" + "00" * 9)[:2] == (0, GOOD), "a flush is not limited"
    assert adapter.do("12 00 00 00 24 00", 36, target=1)[1] == GOOD, (
        "nor one that Python does, and it lets none through"
    )
    # Not in flight and not begun: they come back to be tried again, and no pause or reset is a way around a limit.
    device.hold()
    device.release()
    assert len(adapter.collect(REQUEST, 2)) == 2
    assert [adapter.answer_at(i)[1] for i in range(2, 4)] == [8] * 2
    assert device.waiting == 0
    adapter.offer(0, read)
    assert adapter.do(read, 4096, target=1)[1] == GOOD
    assert device.waiting == 1
    assert adapter.manage(5) == 0
    assert len(adapter.collect(REQUEST)) == 1
    assert adapter.answer_at(0)[1] == 8
    # At a rate, all get there; the second limit is of bytes.
    device.set_unit_limit(0, 0, bytes=1 << 20, operations=100, byte_burst=4096, operation_burst=1)
    assert adapter.do(read, 4096)[3] == (6, 0x29, 3), "the reset"
    for i in range(6):
        adapter.offer(i, read)
    assert len(adapter.collect(REQUEST, 6)) == 6
    assert [adapter.answer_at(i)[:2] for i in range(6)] == [(0, GOOD)] * 6
    adapter.offer(0, read)
    device.unplug(1, 0)
    medium.close()
