"""A device on a transport, against a guest that does what a fuzzer's bytes say.

The bytes are a program of steps: registers, rings, doorbells, memory, resets, and requests that are right as far as
they go. What must hold: no step raises, at most one line is said for each time that a reset became due, nothing that
Python raised inside of a device is the reason, and afterwards the device works again.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
import struct
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmkit.bus import pc
from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver, PciDriver
from kvmkit.testing.rings import BadRing
from kvmkit.virtio import features as f

from .poison import fence
from .reader import Reader

if TYPE_CHECKING:
    from kvmkit.virtio.device import VirtioDevice

MEMORY = 2 << 20
DISK = 1 << 20
RINGS = 0x10000
RAISED = re.compile(r"queue \d+: [A-Z]\w*(?:Error|Exception|Input|Interrupt): ")
DRIVER_OK = 4

Valid = Callable[["Bench", Reader, int], "tuple[bytes, int]"]
"""Of a queue's number: a request's bytes, and the room for its answer."""


class Bench:
    """One device for many runs. `valid` makes requests that reach far; `check` asks what has to be answered."""

    def __init__(
        self,
        make: Callable[[GuestMemory, Callable[[str], None]], VirtioDevice],
        kind: type[MmioDriver],
        valid: Valid,
        check: Callable[[Bench], None],
        extra: int = 0,
    ) -> None:
        self.memory = GuestMemory(MEMORY)
        fence(self.memory)
        self.said: list[str] = []
        self.device = make(self.memory, self.said.append)
        self.device.hold()  # its lanes take turns on this thread
        self.kind, self.valid, self.check, self.extra = kind, valid, check, extra
        self.driver: Any = kind(self.device, self.memory, features=extra, size=8, rings=RINGS)
        self.program = Reader(b"")
        if isinstance(self.driver, PciDriver):
            self.bars = [self.driver.config(at, 4) for at in (0x10, 0x14)]

    def run(self, data: bytes) -> None:
        self.said.clear()
        self.due = 0
        self.program = program = Reader(data)
        self.memory.write(RINGS, bytes(0x2000))
        self.start()
        steps: tuple[Callable[[Reader], None], ...] = (
            self.request, self.request, self.request, self.chain, self.chain, self.poke, self.poke_ring,
            self.register, self.doorbell, self.restart, self.single, self.control,
        )  # fmt: skip
        for _ in range(64):
            if not program.more:
                break
            program.choose(steps)(program)
            self.watch()
        self.settle()
        self.watch()
        self.finish()

    def finish(self) -> None:
        """A driver that keeps the rules finds a device that works."""
        self.driver.packed, self.driver.events = False, False
        self.driver.wanted = f.VERSION_1 | f.INDIRECT_DESC | self.extra
        self.place(msix=False)
        self.driver.start()
        self.check(self)
        self.driver.reset()

    def start(self) -> None:
        """A driver of one kind or another."""
        driver, choice = self.driver, self.program.number(1)
        driver.packed, driver.events = bool(choice & 1), bool(choice & 2)
        driver.wanted = (
            f.VERSION_1 | self.extra | (f.RING_PACKED if choice & 1 else 0) | (f.EVENT_IDX if choice & 2 else 0)
        )
        driver.wanted |= (f.INDIRECT_DESC if choice & 4 else 0) | (f.IN_ORDER if choice & 8 else 0)
        driver.wanted |= f.RING_RESET if choice & 16 else 0
        self.place(msix=bool(choice & 32))
        driver.start()

    def place(self, *, msix: bool) -> None:
        """Put the BAR where it was at first, as a guest's firmware does after a reset."""
        if not isinstance(self.driver, PciDriver):
            return
        self.driver.set_config(4, 2, 0)
        for at, value in zip((0x10, 0x14), self.bars, strict=True):
            self.driver.set_config(at, 4, value)
        self.driver.set_config(4, 2, 6)
        self.driver.msix = msix
        if not msix:
            self.driver.set_config(self.driver.msix_control, 2, 0)
        self.driver.find()

    def watch(self) -> None:
        failure = self.device.failure
        assert not RAISED.match(failure), failure
        assert len(self.said) <= self.due + 1, self.said
        for line in self.said:
            assert "\n" not in line, line

    def settle(self) -> None:
        """Have the lanes do what there is."""
        if self.device.status & DRIVER_OK:
            for lane in self.device.lanes:
                lane.turn()

    # Steps.

    def request(self, program: Reader) -> None:
        """A request as it should be, or almost."""
        queue = program.below(len(self.device.queues))
        data, room = self.valid(self, program, queue)
        shape = program.number(1)
        at = 0x100000 + 0x8000 * (shape & 7) + (1 if shape & 8 else 0)
        self.memory.write(at, data)
        parts: list[tuple[int, int, bool]] = []
        cut = program.below(len(data) + 1) if shape & 16 else 0
        for first, last in ((0, cut), (cut, len(data))):
            if last > first:
                parts.append((at + first, last - first, False))
        answer = (at + len(data) + 63) & ~63
        if room:
            parts.append((answer, room, True))
        self.add(queue, parts, 0x1F0000 + 0x400 * (shape & 7) if shape & 32 else None)
        if not shape & 64:
            self.ring(queue)

    def chain(self, program: Reader) -> None:
        """Descriptors of any kind."""
        parts = [(self.address(program), program.value() & 0xFFFFFFFF, program.flag()) for _ in range(program.below(6))]
        queue = program.below(len(self.device.queues))
        self.add(queue, parts, 0x1F0000 if program.flag() else None)
        self.ring(queue)

    def address(self, program: Reader) -> int:
        if program.flag():
            return program.number(2) << 5
        return program.value()

    def add(self, queue: int, parts: list[tuple[int, int, bool]], table: int | None) -> None:
        if not parts or queue >= len(self.driver.queues):
            return
        try:
            self.driver.queues[queue].collect()
            self.driver.queues[queue].add(parts, table)
        except (BadRing, ValueError, IndexError):
            pass  # what the driver remembers of its ring is not what is there any more

    def ring(self, queue: int) -> None:
        if queue < len(self.driver.queues):
            self.driver.queues[queue].publish()
            self.bell(queue)
            self.settle()

    def bell(self, queue: int) -> None:
        if isinstance(self.driver, PciDriver):
            self.driver.vm.write(self.driver.bell(queue), 2, queue)
        else:
            self.driver.set(0x50, queue)

    def poke(self, program: Reader) -> None:
        at = program.number(3) % (MEMORY - 64)
        self.memory.write(at, program.bytes(program.below(32)))

    def poke_ring(self, program: Reader) -> None:
        """A few bytes of a queue's rings, which are 8 entries long."""
        at = RINGS + 0x20000 * program.below(len(self.device.queues)) + program.below(0x100)
        self.memory.write(at, program.bytes(1 + program.below(16)))

    def register(self, program: Reader) -> None:
        size, where, value = 1 << program.below(4), program.number(2), program.value()
        vm = self.driver.vm
        if isinstance(self.driver, PciDriver):
            place = program.below(8)
            if place == 0:
                base = pc.PCI_ECAM + (self.driver.slot << 15)
                where &= 0xFFF
            else:
                base = self.driver.places[1] & ~0x7FFF
                where &= 0x7FFF
        else:
            base, where = 0xFEB00000, where & 0xFFF
        if program.flag():
            vm.write(base + where, size, value & ((1 << 8 * size) - 1))
        else:
            vm.read(base + where, size)
        self.due += 1

    def doorbell(self, program: Reader) -> None:
        queue = program.number(1)
        if isinstance(self.driver, PciDriver):
            queue %= len(self.device.queues)
        if queue < len(self.device.queues) or not isinstance(self.driver, PciDriver):
            self.bell(queue)
        self.settle()

    def restart(self, program: Reader) -> None:
        self.driver.reset() if program.flag() else self.start()
        self.due += 1

    def single(self, program: Reader) -> None:
        """A queue is taken back, and set up again."""
        queue = program.below(len(self.device.queues))
        if isinstance(self.driver, PciDriver):
            self.driver.set(0x16, queue, 2)
            self.driver.set(0x3A, 1, 2)
        else:
            self.driver.set(0x30, queue)
            self.driver.set(0xC0, 1)
        if program.flag() and queue < len(self.driver.queues):
            self.driver.queues[queue] = None
            try:
                self.driver.set_up(queue)
            except AssertionError:
                pass  # a vector that is not taken: MSI-X is off by now
            if self.driver.queues[queue] is None:
                self.driver.queues = []
        self.due += 1

    def control(self, program: Reader) -> None:
        """What our own side does meanwhile."""
        what = program.below(5)
        if what == 0:
            self.device.restore(self.device.state())
        elif what == 1:
            self.device.set_limit(bytes=1e12, operations=1e9)
        elif what == 2:
            self.device.set_limit()
        elif what == 3 and hasattr(self.device, "resize"):
            os.ftruncate(self.device.disk.fd, DISK - 512 * program.below(8))
            self.device.resize()
        else:
            self.device.needs_reset("because")
            self.due += 1


def ask(bench: Bench, queue: int, data: bytes, room: int) -> bytes:
    """A request that has to be answered."""
    driver, memory = bench.driver, bench.memory
    memory.write(0x100000, data)
    parts = [(0x100000, len(data), False)] if data else []
    driver.queues[queue].add([*parts, (0x140000, room, True)] if room else parts)
    driver.queues[queue].publish()
    bench.bell(queue)
    bench.settle()
    found = driver.queues[queue].collect()
    assert found, f"no answer: {bench.device.failure or bench.device.status}"
    return memory.read(0x140000, found[0][1]) if found[0][1] else b""


# The devices.


def disk_file(size: int = DISK, **options: Any) -> Any:
    from kvmkit.block.file import DiskFile

    fd = os.memfd_create("fuzz-disk")
    os.ftruncate(fd, size)
    try:
        return DiskFile(f"/proc/self/fd/{fd}", **options)
    finally:
        os.close(fd)


def blk(kind: type[MmioDriver], uring: bool = True) -> Bench:
    from kvmkit.virtio import blk as b

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        request = program.choose((0, 1, 1, 4, 8, 11, 13, program.number(1)))
        sector = program.number(1) if program.flag() else program.value()
        size = 512 * program.below(9) if program.flag() else program.below(600)
        if request in (11, 13):
            segments = [(program.number(1), program.number(2), program.below(3)) for _ in range(program.below(4))]
            body = b"".join(struct.pack("<QII", *segment) for segment in segments)
        else:
            body = bytes([request]) * (size if request == 1 else 0)
        return struct.pack("<IIQ", request, 0, sector) + body, 1 + (0 if body else size)

    def check(bench: Bench) -> None:
        os.ftruncate(bench.device.disk.fd, DISK)  # type: ignore[attr-defined]  # a disk's
        bench.device.resize()  # type: ignore[attr-defined]
        data = os.urandom(512)
        assert ask(bench, 1, struct.pack("<IIQ", 1, 0, 3) + data, 1) == b"\0"
        assert ask(bench, 0, struct.pack("<IIQ", 0, 0, 3), 513) == data + b"\0"

    extra = b.SEG_MAX | b.BLK_SIZE | b.FLUSH | b.TOPOLOGY | b.CONFIG_WCE | b.MQ | b.DISCARD | b.WRITE_ZEROES
    return Bench(
        lambda memory, log: b.Blk(memory, disk_file(), queues=2, uring=uring, log=log), kind, valid, check, extra
    )


def rng(kind: type[MmioDriver]) -> Bench:
    from kvmkit.virtio.rng import Rng

    def check(bench: Bench) -> None:
        assert len(ask(bench, 0, b"", 64)) == 64

    return Bench(lambda memory, log: Rng(memory, log=log), kind, lambda _, program, __: (b"", program.number(2)), check)


def scsi(kind: type[MmioDriver], uring: bool = True) -> Bench:
    from kvmkit.virtio.scsi.cdrom import CdRom
    from kvmkit.virtio.scsi.device import Scsi, encode
    from kvmkit.virtio.scsi.disk import Disk
    from kvmkit.virtio.scsi.medium import FileMedium
    from kvmkit.virtio.scsi.target import Targets

    ops = (
        0x00,
        0x03,
        0x08,
        0x0A,
        0x12,
        0x15,
        0x1A,
        0x1B,
        0x1E,
        0x25,
        0x28,
        0x2A,
        0x2F,
        0x35,
        0x41,
        0x42,
        0x43,
        0x46,
        0x4A,
    )
    ops += (0x55, 0x5A, 0x88, 0x8A, 0x8F, 0x91, 0x93, 0x9E, 0xA0, 0xA8, 0xAA, 0xAF)  # type: ignore[assignment]  # longer

    def make(memory: GuestMemory, log: Callable[[str], None]) -> Scsi:
        targets = Targets()
        targets.add(0, 0, Disk(FileMedium(disk_file()), serial="fuzz"))
        targets.add(0, 300, Disk(FileMedium(disk_file(readonly=True))))
        targets.add(1, 0, CdRom(FileMedium(disk_file(readonly=True))))
        return Scsi(memory, targets, uring=uring, log=log)

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        lun = program.choose((encode(0, 0), encode(0, 0), encode(0, 300), encode(1, 0), program.bytes(8)))
        if queue == 0:
            kind = program.choose((0, 0, 0, 1, 2, program.number(1)))
            return struct.pack("<II", kind, program.below(9)) + lun + program.bytes(8), 5
        if queue == 1:
            return b"", 16
        op = program.choose(ops)
        length = (6, 10, 10, 16, 16, 12, 16, 16)[op >> 5]
        cdb = bytes([op]) + program.bytes(length - 1) if program.flag() else b""
        if not cdb:  # small numbers in the usual places
            first, count, flags = program.below(300), program.below(9), program.choose((0, 0, 1, 8, 0x10, 0x20))
            if length == 6:
                cdb = bytes([op, 0, 0, first & 0xFF, count, 0])
            elif length == 10:
                cdb = struct.pack(">BBIBHB", op, flags, first, 0, count * (8 if op == 0x42 else 1), 0)
            elif length == 12:
                cdb = struct.pack(">BBIIBB", op, flags, first, count, 0, 0)
            else:
                cdb = struct.pack(">BBQIBB", op, flags, first, count, 0, 0)
        body = program.bytes(program.below(64)) if program.flag() else bytes(512 * program.below(9))
        head = lun + program.bytes(8) + bytes([program.below(5), 0, 0])
        return head + cdb.ljust(32, b"\0") + body, 108 + 512 * program.below(9)

    def check(bench: Bench) -> None:
        for _ in range(12):  # what the unit still had to say
            head = encode(0, 0) + bytes(11)
            answer = ask(bench, 2, head + bytes.fromhex("1b 00 00 00 01 00").ljust(32, b"\0"), 108)
            if answer[10] == 0:
                break
        data = os.urandom(512)
        write = bytes.fromhex("2a 00 00000003 00 0001 00").ljust(32, b"\0")
        read = bytes.fromhex("28 00 00000003 00 0001 00").ljust(32, b"\0")
        assert ask(bench, 2, head + write + data, 108)[10:12] == b"\0\0"
        assert ask(bench, 2, head + read, 108 + 512)[108:] == data

    return Bench(make, kind, valid, check, 7)


def net(kind: type[MmioDriver]) -> Bench:
    from kvmkit.net.stream import StreamBackend
    from kvmkit.virtio.net import Net

    mac = bytes.fromhex("525400123456")
    ours, theirs = socket.socketpair()
    theirs.setblocking(False)

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        with contextlib.suppress(BlockingIOError):
            theirs.recv(1 << 20)
            body = program.bytes(program.below(80))
            theirs.send(struct.pack(">I", len(mac + body)) + mac + body)
        if queue == 0:
            return b"", program.choose((12, 70, 1526, program.number(2)))
        if queue == 1:
            frame = program.bytes(program.below(90))
            header = program.bytes(12) if program.flag() else bytes(12)
            return header + frame, 0
        command = program.choose((0, 1, 2, 3, 4, 5, program.number(1)))
        body = program.bytes(program.below(24))
        return bytes([command, program.below(7)]) + body, 1

    def check(bench: Bench) -> None:
        frame = mac + bytes(6) + b"\x88\xb5" + os.urandom(60)
        ask(bench, 1, bytes(12) + frame, 0)
        bench.settle()
        with contextlib.suppress(BlockingIOError):
            while theirs.recv(1 << 20):
                pass

    def make(memory: GuestMemory, log: Callable[[str], None]) -> Net:
        return Net(memory, StreamBackend(ours), mac, log=log)

    extra = sum(1 << bit for bit in (0, 1, 2, 3, 5, 7, 8, 9, 11, 12, 13, 15, 16, 17, 18, 19, 20, 21, 23))
    return Bench(make, kind, valid, check, extra)


def vsock(kind: type[MmioDriver]) -> Bench:
    from kvmkit.virtio.vsock import Vsock

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        if queue != 1:
            return b"", program.choose((44, 64, 4096, program.number(2)))
        body = program.bytes(program.below(40))
        claimed = len(body) if program.flag() else program.value() & 0xFFFFFFFF
        source, target = program.choose((3, 3, 3, program.value())), program.choose((2, 2, 2, program.value()))
        ports = program.choose((1, 2, 1024, program.value() & 0xFFFFFFFF)), program.choose((1, 2, 1024, 9))
        head = struct.pack("<QQIIIHHIII", source, target, *ports, claimed, program.choose((1, 1, 0)), program.below(9),
                           program.below(8), program.value() & 0xFFFFFFFF, program.value() & 0xFFFFFFFF)  # fmt: skip
        return head + body, 0

    def check(bench: Bench) -> None:
        # A request to a port where nobody listens is answered by a reset.
        driver, memory = bench.driver, bench.memory
        driver.queues[0].add([(0x140000, 4096, True)])
        driver.queues[0].publish()
        bench.bell(0)
        head = struct.pack("<QQIIIHHIII", 3, 2, 4000, 4001, 0, 1, 1, 0, 65536, 0)
        ask(bench, 1, head, 0)
        bench.settle()
        found = driver.queues[0].collect()
        assert found, "no answer"
        assert memory.read(0x140000, found[0][1])[30:32] == b"\3\0"

    return Bench(lambda memory, log: Vsock(memory, 3, log=log), kind, valid, check)
