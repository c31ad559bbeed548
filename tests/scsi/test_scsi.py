"""The SCSI target by its commands, and the virtio device by a driver in Python."""

from __future__ import annotations

import os
import struct
from collections.abc import Iterator
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.block.file import DiskFile
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver, PciDriver
from kvmkit.virtio.scsi.cdrom import CdRom
from kvmkit.virtio.scsi.device import Scsi, encode
from kvmkit.virtio.scsi.disk import MOST_TRANSFER, Disk
from kvmkit.virtio.scsi.medium import FileMedium
from kvmkit.virtio.scsi.sense import Status
from kvmkit.virtio.scsi.target import Targets
from kvmkit.virtio.scsi.unit import Answer, LogicalUnit

MIB = 1 << 20
POWER_ON = (6, 0x29, 0)


@pytest.fixture
def medium(tmp_path: Path) -> Iterator[FileMedium]:
    path = tmp_path / "disk"
    path.write_bytes(bytes(range(256)) * 4096)
    medium = FileMedium(DiskFile(str(path)))
    yield medium
    medium.close()


@pytest.fixture
def disk(medium: FileMedium) -> Disk:
    disk = Disk(medium, serial="S-1")
    assert sense(disk.execute(bytes(6))) == POWER_ON, "the first command learns of it"
    return disk


def sense(answer: Answer) -> tuple[int, int, int]:
    """(key, code, qualifier); zeros when it went well."""
    if answer.status == Status.GOOD:
        return (0, 0, 0)
    assert answer.status == Status.CHECK_CONDITION
    assert (answer.sense[0] & 0x7F, len(answer.sense)) == (0x70, 18)
    return answer.sense[2], answer.sense[12], answer.sense[13]


def do(unit: LogicalUnit, cdb: str, data: bytes = b"") -> bytes:
    answer = unit.execute(bytes.fromhex(cdb), data)
    assert sense(answer) == (0, 0, 0)
    return answer.data


def fails(unit: LogicalUnit, cdb: str, data: bytes = b"") -> tuple[int, int, int]:
    return sense(unit.execute(bytes.fromhex(cdb), data))


READS = ["08 00 00 02 01 00", "28 00 00000002 00 0001 00", "a8 00 00000002 00000001 00 00"]
READS.append("88 00 0000000000000002 00000001 00 00")
WRITES = ["0a 00 00 02 01 00", "2a 00 00000002 00 0001 00", "aa 00 00000002 00000001 00 00"]
WRITES.append("8a 00 0000000000000002 00000001 00 00")


@pytest.mark.parametrize(("read", "write"), list(zip(READS, WRITES, strict=True)))
def test_blocks_are_read_and_written_by_every_length_of_command(disk, medium, read, write):
    assert do(disk, read) == medium.read(1024, 512)
    do(disk, write, b"w" * 512)
    assert medium.read(1024, 512) == do(disk, read) == b"w" * 512
    assert medium.read(512, 512) == bytes(range(256)) * 2


@pytest.mark.parametrize(
    ("cdb", "why"),
    [
        ("28 00 00000800 00 0001 00", (5, 0x21, 0)),  # behind the end
        ("28 00 000007ff 00 0002 00", (5, 0x21, 0)),
        ("88 00 ffffffffffffffff ffffffff 00 00", (5, 0x21, 0)),
        ("28 20 00000000 00 0001 00", (5, 0x24, 0)),  # protection information
        ("28 00 00000000 00 0001 04", (5, 0x24, 0)),  # NACA
        ("28 00 00000000 00 0600 00", (5, 0x24, 0)),  # more than may be asked for
        ("2a 00 00000000 00 0001 00", (5, 0x1A, 0)),  # without data
        ("ff 00 00 00 00 00", (5, 0x20, 0)),
        ("12 00 83 00 ff 00", (5, 0x24, 0)),
        ("12 01 c0 00 ff 00", (5, 0x24, 0)),
        ("1a 00 ff 00 ff 00", (5, 0x39, 0)),
        ("1a 00 1d 00 ff 00", (5, 0x24, 0)),
        ("1b 00 00 00 02 00", (5, 0x24, 0)),  # a disk does not eject
        ("93 00 0000000000000000 00000000 00 00", (5, 0x24, 0)),
        ("42 01 00000000 00 0018 00", (5, 0x24, 0)),
    ],
)
def test_each_mistake_has_its_sense_data(disk, cdb, why):
    assert fails(disk, cdb) == why


def test_the_sense_data_points_at_the_block_and_at_the_byte(disk):
    answer = disk.execute(bytes.fromhex("28 00 000007ff 00 0002 00"))
    assert answer.sense[0] == 0xF0
    assert answer.sense[3:7] == (0x800).to_bytes(4, "big")
    answer = disk.execute(bytes.fromhex("12 01 c0 00 ff 00"))
    assert answer.sense[15:18] == bytes([0xC0, 0, 2])


def test_inquiry_and_its_pages(disk):
    data = do(disk, "12 00 00 00 ff 00")
    assert (data[0], data[2], data[4], len(data)) == (0, 6, 31, 36)
    assert data[8:32] == b"KVMKIT  VIRTUAL DISK    "
    assert do(disk, "12 00 00 00 05 00") == data[:5]
    pages = do(disk, "12 01 00 00 ff 00")
    assert pages[4:] == bytes([0, 0x80, 0x83, 0xB0, 0xB1, 0xB2])
    for page in pages[4:]:
        found = do(disk, f"12 01 {page:02x} 00 ff 00")
        assert found[1] == page
        assert int.from_bytes(found[2:4], "big") == len(found) - 4
    assert do(disk, "12 01 80 00 ff 00")[4:] == b"S-1"


def test_capacity(disk, medium):
    assert do(disk, "25" + "00" * 9) == struct.pack(">II", 2047, 512)
    data = do(disk, "9e 10" + "00" * 8 + "00000020" + "0000")
    assert struct.unpack_from(">QI", data) == (2047, 512)
    assert data[13:15] == bytes([3, 0xC0])
    os.truncate(medium.file.path, 2 * MIB)
    medium.file.size = medium.file.measure()
    disk.resized()
    assert fails(disk, "00" * 6) == (6, 0x2A, 9)
    assert do(disk, "25" + "00" * 9)[:4] == (4095).to_bytes(4, "big")


def test_unmap_and_write_same(disk, medium):
    parameters = struct.pack(">HHI", 6 + 16 + 8, 16, 0) + struct.pack(">QII", 0, 8, 0)
    do(disk, "42 00 00000000 00 0018 00", parameters)
    assert medium.read(0, 4096) == bytes(4096)
    assert fails(disk, "42 00 00000000 00 0018 00", parameters[:10]) == (5, 0x1A, 0)
    beyond = parameters[:8] + struct.pack(">QII", 2047, 2, 0)
    assert fails(disk, "42 00 00000000 00 0018 00", beyond) == (5, 0x21, 0)
    do(disk, "93 00 0000000000000010 00000004 00 00", b"s" * 512)
    assert medium.read(0x10 * 512, 2048) == b"s" * 2048
    do(disk, "41 08 00000010 00 0002 00", bytes(512))
    assert medium.read(0x10 * 512, 2048) == bytes(1024) + b"s" * 1024
    do(disk, "93 01 0000000000000012 00000001 00 00")
    assert medium.read(0x12 * 512, 1024) == bytes(512) + b"s" * 512


def test_the_write_cache_can_be_turned_off(disk):
    page = do(disk, "1a 08 08 00 ff 00")
    assert page[4:7] == bytes([8, 18, 4])
    assert do(disk, "1a 08 48 00 ff 00")[6] == 4, "and no other bit"
    off = bytes(4) + page[4:6] + b"\0" + page[7:]
    do(disk, f"15 10 00 00 {len(off):02x} 00", off)
    assert not disk.write_cache
    assert do(disk, "1a 08 88 00 ff 00")[6] == 4, "the default"
    wrong = bytes(4) + page[4:7] + b"\1" + page[8:]
    assert fails(disk, f"15 10 00 00 {len(wrong):02x} 00", wrong) == (5, 0x26, 0)
    assert fails(disk, f"15 10 00 00 {len(off):02x} 00", off[:9]) == (5, 0x1A, 0)


def test_stopped_and_started(disk):
    do(disk, "1b 00 00 00 00 00")
    assert fails(disk, READS[1]) == (2, 4, 2)
    assert do(disk, "03 00 00 00 12 00")[12:14] == b"\4\2"
    do(disk, "1b 00 00 00 01 00")
    do(disk, READS[1])
    assert do(disk, "03 01 00 00 12 00") == bytes([0x72, 0, 0, 0, 0, 0, 0, 0])


def test_a_disk_that_is_only_read(tmp_path):
    path = tmp_path / "ro"
    path.write_bytes(bytes(4096))
    medium = FileMedium(DiskFile(str(path), readonly=True))
    disk = Disk(medium)
    disk.take_attention()
    for cdb, data in ((WRITES[1], bytes(512)), ("93 01" + "00" * 11 + "01 00 00", b"")):
        assert fails(disk, cdb, data) == (7, 0x27, 0)
    assert do(disk, "1a 00 08 00 ff 00")[2] & 0x80
    medium.close()


def test_a_host_that_fails_is_a_medium_error(disk, medium):
    os.truncate(medium.file.path, 512)
    assert fails(disk, READS[1]) == (3, 0x11, 0)
    fd, medium.file.fd = medium.file.fd, os.open("/dev/full", os.O_WRONLY)
    assert fails(disk, WRITES[1], bytes(512)) == (7, 0x27, 7)
    os.close(medium.file.fd)
    medium.file.fd = fd


def test_a_cd_and_its_tray(medium):
    drive = CdRom(medium)
    drive.take_attention()
    assert do(drive, "12 00 00 00 ff 00")[:2] == bytes([5, 0x80])
    assert do(drive, "25" + "00" * 9) == struct.pack(">II", 511, 2048)
    assert do(drive, "28 00 00000001 00 0001 00") == medium.read(2048, 2048)
    assert fails(drive, WRITES[1], bytes(512)) == (5, 0x20, 0)
    assert do(drive, "43 00 00 00 00 00 00 00 ff 00") == bytes.fromhex("0012 01 01 00140100 00000000 0014aa00 00000200")
    assert do(drive, "43 02 00 00 00 00 aa 00 ff 00")[-4:] == bytes([0, 0, 8, 62])
    do(drive, "1e 00 00 00 01 00")
    assert fails(drive, "1b 00 00 00 02 00") == (5, 0x53, 2)
    do(drive, "1e 00 00 00 00 00")
    do(drive, "1b 00 00 00 02 00")
    assert fails(drive, "00" * 6) == (2, 0x3A, 0)
    assert do(drive, "4a 01 00 00 10 00 00 00 ff 00") == bytes.fromhex("0006 04 10 03 01 00 00")
    do(drive, "1b 00 00 00 03 00")
    assert fails(drive, "00" * 6) == (6, 0x28, 0)
    assert do(drive, "4a 01 00 00 10 00 00 00 ff 00")[4:6] == bytes([2, 2])
    assert do(drive, "46 00 00 00 00 00 00 00 ff 00")[6:8] == bytes([0, 8])


def test_a_target_knows_its_units(disk, medium):
    targets = Targets()
    targets.add(0, 0, disk)
    targets.add(0, 300, Disk(medium))
    assert sense(targets.execute(0, 0, bytes(6))) == (6, 0x3F, 0x0E)
    luns = targets.execute(0, 0, bytes.fromhex("a0 00 00 00 00 00 00 00 00 ff 00 00"))
    assert luns.data == bytes.fromhex("00000010 00000000 0000000000000000 412c000000000000")
    assert targets.execute(0, 5, bytes.fromhex("12 00 00 00 ff 00")).data[0] == 0x7F
    assert sense(targets.execute(0, 5, bytes(6))) == (5, 0x25, 0)
    assert targets.execute(1, 0, bytes(6)) is None
    with pytest.raises(BadInput):
        targets.add(0, 0, disk)
    assert targets.remove(0, 0) is disk


@settings(max_examples=300, deadline=None)
@given(st.binary(max_size=32), st.binary(max_size=600), st.booleans())
def test_no_command_hurts(cdb, data, optical):
    class Memory:
        readonly = False
        size = 64 << 10

        def read(self, offset, length):
            assert 0 <= offset <= offset + length <= self.size
            return bytes(length)

        def write(self, offset, data):
            assert 0 <= offset <= offset + len(data) <= self.size

        def flush(self):
            pass

        def discard(self, offset, length):
            assert 0 <= offset <= offset + length <= self.size

        zero = discard

    unit = CdRom(Memory()) if optical else Disk(Memory())
    unit.take_attention()
    answer = unit.execute(cdb, data)
    assert len(answer.data) <= MOST_TRANSFER
    assert (answer.status == Status.GOOD) == (answer.sense == b"")


@pytest.mark.parametrize("kind", [MmioDriver, PciDriver])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_the_device_by_its_queues(medium, kind, packed):
    memory = GuestMemory(4 * MIB)
    targets = Targets()
    targets.add(3, 0, Disk(medium))
    adapter = Scsi(memory, targets)
    adapter_features = 7

    def command(cdb: str, room: int = 0, data: bytes = b"", lun: bytes = encode(3, 0)) -> tuple[int, int, int, bytes]:
        request = lun + bytes(8) + bytes(3) + bytes.fromhex(cdb).ljust(32, b"\0") + data
        answer = driver.request(2, request, 108 + room)
        _, left, _, status, response = struct.unpack_from("<IIHBB", answer)
        return response, status, left, answer[108:]

    with kind(adapter, memory, packed=packed, features=adapter_features) as driver:
        driver.start()
        assert command("00" * 6)[:2] == (0, 2)
        assert command(READS[1], 512) == (0, 0, 0, medium.read(1024, 512))
        assert command(READS[1], 511)[0] == 1, "overrun"
        assert command("12 00 00 00 ff 00", 255)[:3] == (0, 0, 255 - 36)
        assert command(WRITES[1], data=b"v" * 512)[:2] == (0, 0)
        assert medium.read(1024, 512) == b"v" * 512
        assert command("00" * 6, lun=encode(4, 0))[0] == 3
        assert command("00" * 6, lun=bytes(8))[0] == 3
        assert driver.request(2, b"short", 108)[11] == 9
        manage = struct.pack("<II8sQ", 0, 5, encode(3, 0), 0)
        assert driver.request(0, manage, 1) == b"\0"
        assert command("00" * 6)[:2] == (0, 2), "reset: a unit attention"
        assert driver.request(0, struct.pack("<II8sQ", 0, 2, encode(3, 0), 0), 1) == bytes([11])
        assert driver.request(0, struct.pack("<II8sQ", 0, 5, encode(3, 1), 0), 1) == bytes([12])
        at = memory.size - 4096
        driver.queues[1].add([(at, 16, True)])
        driver.ring(1)
        adapter.plug(5, 1, Disk(medium))
        assert driver.collect(1)[0][1] == 16
        assert memory.read(at, 16) == struct.pack("<I8sI", 1, encode(5, 1), 1)
        adapter.unplug(5, 1)
        driver.queues[1].add([(at, 16, True)])
        driver.ring(1)
        assert driver.collect(1)[0][1] == 16
        assert memory.read(at, 16) == struct.pack("<I8sI", 1, encode(5, 1), 2)
    memory.close()
