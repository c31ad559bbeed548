"""Consoles, balloons, input, persistent memory and a relay, for the fuzzer, and what the host does meanwhile."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import Callable
from pathlib import Path

from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver
from kvmkit.virtio.device import DRIVER_OK
from kvmkit.virtio.vhost_user.relay import RINGS_AT, Relay

from .bench import MEMORY, Bench, ask, disk_file
from .reader import Reader


def console(kind: type[MmioDriver]) -> Bench:
    """Three ports, the first a console; up to one program of the host's at each."""
    from kvmkit.virtio.console import Console

    directory = tempfile.TemporaryDirectory(prefix="fuzz-")
    paths = [str(Path(directory.name) / name) for name in ("hvc0", "one", "two")]
    ours: dict[int, socket.socket] = {}

    def make(memory: GuestMemory, log: Callable[[str], None]) -> Console:
        return Console(memory, [(Path(path).name, path) for path in paths], log=log)

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        if queue == 3:
            event = program.choose((0, 3, 6, 6, 3, program.number(1)))
            return struct.pack("<IHH", program.below(4), event, program.choose((1, 1, 0, program.number(2)))), 0
        if queue % 2:
            return program.bytes(program.below(40)) * program.choose((1, 1, 300)), 0
        return b"", program.choose((8, 40, 4096, program.number(2)))

    def host(bench: Bench, program: Reader) -> None:
        port, what = program.below(3), program.below(6)
        one = ours.get(port)
        with contextlib.suppress(OSError):
            if what == 0 or (one is None and what < 5):
                connect(port)
            elif what == 1 and one is not None:
                ours.pop(port).close()
            elif what == 2 and one is not None:
                one.send(program.bytes(program.below(64)) * program.choose((1, 1, 500)))
            elif what == 3 and one is not None:
                one.recv(1 << 16)
            elif what == 4 and one is not None:
                one.shutdown(program.below(3))
            elif what == 5:
                bench.device.resize(program.number(2), program.number(2))  # type: ignore[attr-defined]
        bench.settle()

    def connect(port: int) -> None:
        assert Path(directory.name).is_dir()
        if port in ours:
            ours.pop(port).close()
        ours[port] = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        ours[port].setblocking(False)
        ours[port].connect(paths[port])

    def check(bench: Bench) -> None:
        for port in list(ours):
            ours.pop(port).close()
        bench.settle()
        for port in range(3):  # whoever was there before is not in the way
            connect(port)
        bench.settle()
        assert bench.device.connected() == [True] * 3  # type: ignore[attr-defined]
        driver, memory = bench.driver, bench.memory
        for place in range(4):
            driver.queues[2].add([(0x140000 + 64 * place, 64, True)])
        driver.queues[2].publish()
        bench.bell(2)
        ask(bench, 3, struct.pack("<IHH", 0xFFFFFFFF, 0, 1), 0)
        bench.settle()
        assert len(driver.queues[2].collect()) == 3
        assert memory.read(0x140000, 8) == struct.pack("<IHH", 0, 1, 1)
        ask(bench, 1, b"said", 0)
        assert ours[0].recv(1 << 20)[-4:] == b"said"
        for port in list(ours):
            ours.pop(port).close()
        bench.settle()

    return Bench(make, kind, valid, check, 3, own=(host,))


def balloon(kind: type[MmioDriver]) -> Bench:
    from kvmkit.virtio.balloon import Balloon

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        some = 0x1E0, 0x1F0, 0x1FF, 0x100000 + program.number(1), program.value() & 0xFFFFFFFF
        pages = [program.choose(some) for _ in range(program.below(9))]
        what = program.below(4)
        if what == 0:  # page numbers, few or many
            return struct.pack(f"<{len(pages)}I", *pages) * program.choose((1, 1, 90)), 0
        if what == 1:  # statistics
            tags = (struct.pack("<HQ", program.below(12), program.value()) for _ in range(program.below(20)))
            return b"".join(tags), 0
        if what == 2:  # free pages
            return b"", program.choose((4096, 8192, 0x7000, program.number(2)))
        return struct.pack("<I", program.choose((0, 1, 2, 3, program.value() & 0xFFFFFFFF))), program.number(2)

    def host(bench: Bench, program: Reader) -> None:
        device, what = bench.device, program.below(4)
        assert isinstance(device, Balloon)
        if what == 0:
            device.set_target(1 + program.number(3) % device.memory.size)
        elif what == 1:
            device.ask_stats()
        elif what == 2:
            device.reclaim()
        assert 0 <= device.given_bytes <= device.memory.size
        assert all(value >= 0 for value in device.stats().values())
        bench.settle()

    def check(bench: Bench) -> None:
        device = bench.device
        assert isinstance(device, Balloon)
        for numbers, given in (((0x1F0, 0x1F1), 8192), ((0x1F0,), 8192)):
            ask(bench, 0, struct.pack(f"<{len(numbers)}I", *numbers), 0)
            assert device.given_bytes == given
        ask(bench, 1, struct.pack("<II", 0x1F0, 0x1F1), 0)
        assert device.given_bytes == 0

    extra = 1 << 1 | 1 << 2 | 1 << 3 | 1 << 5
    # Room behind RAM, as for persistent memory, which is not the balloon's to give.
    return Bench(lambda memory, log: Balloon(memory, log=log), kind, valid, check, extra, own=(host,), behind=MEMORY)


def keyboard(kind: type[MmioDriver]) -> Bench:
    from kvmkit.virtio.input import Input, press

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        if queue == 0:
            return b"", program.choose((8, 8, 16, program.number(1)))
        return program.bytes(program.below(20)), 0

    def host(bench: Bench, program: Reader) -> None:
        device, what = bench.device, program.below(4)
        assert isinstance(device, Input)
        if what == 0:
            count = program.below(40)
            device.inject([(program.below(20), program.number(2), program.number(2)) for _ in range(count)])
        elif what == 1:
            device.inject(press("shift", "a") * program.below(200))
        else:  # as its registers, but without finding them first
            offset, size = program.below(140), 1 << program.below(4)
            device.write_config(offset, size, program.number(size))
            assert device.read_config(2, 1) <= 128
        assert device.waiting <= 1024
        bench.settle()

    def check(bench: Bench) -> None:
        device = bench.device
        assert isinstance(device, Input)
        device.write_config(0, 2, 1)
        assert device.read_config(8, 8) == int.from_bytes(b"kvmkit k", "little")
        assert device.inject([(1, 30, 1)])
        assert ask(bench, 0, b"", 8) == struct.pack("<HHi", 1, 30, 1)

    return Bench(lambda memory, log: Input(memory, "keyboard", log=log), kind, valid, check, own=(host,))


def pmem(kind: type[MmioDriver]) -> Bench:
    from kvmkit.virtio.pmem import Pmem

    size = 2 << 20

    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        data = struct.pack("<I", program.choose((0, 0, 1, program.value() & 0xFFFFFFFF)))
        return data[: program.choose((4, 4, program.below(5)))], program.choose((4, 4, program.below(9)))

    def inside(bench: Bench, program: Reader) -> None:
        """A chain whose buffers lie in the file, or reach over one of its ends."""
        address = bench.device.address  # type: ignore[attr-defined]
        place = program.choose((0, 4096, size - 4, size - 2, size, -2, program.number(3)))
        parts = [(address + place, program.choose((4, 4096, program.number(3))), flag) for flag in (False, True)]
        bench.add(0, parts[: 1 + program.below(2)], None)
        bench.ring(0)

    def check(bench: Bench) -> None:
        assert ask(bench, 0, bytes(4), 4) == bytes(4)
        assert ask(bench, 0, b"\1\0\0\0", 4) == b"\xff" * 4

    def make(memory: GuestMemory, log: Callable[[str], None]) -> Pmem:
        return Pmem(memory, disk_file(size), log=log)

    return Bench(make, kind, valid, check, own=(inside,), behind=size)


# A relay, whose backend may write anything to the rings that it shares with us.

AVAILABLE, USED, PART = 0x1000, 0x2000, 0x3000 + 16 * 256 * 256 + 0x1000 + (1 << 20)
SERVED, REFUSED, QUEUES = 2, 2, 3


class Relayed(Relay):
    """Two queues, of which a backend serves what the driver has set up, and one whose backend is gone for ever.

    They keep writes, as a disk's do.
    """

    def __init__(self, memory: GuestMemory, log: Callable[[str], None]) -> None:
        self.up: set[int] = set()
        super().__init__(memory, 2, QUEUES, name="relay", log=log)
        self.give_up(REFUSED)

    def _go_on(self) -> None:
        if self.status & DRIVER_OK and not self.closed:
            for queue in self.queues[:SERVED]:
                if queue.ready and queue.index not in self.up:
                    self.begin(queue.index)

    def begin(self, index: int) -> None:
        self.prepare(index)
        self.keep(True)
        self.requeue(index)
        self.connect(index, True)
        self.up.add(index)

    def stopped(self) -> None:
        for index in range(QUEUES):
            self.end(index)
        self.keep(False)
        self.give_up(REFUSED)

    def end(self, index: int) -> None:
        self.connect(index, False)
        self.forget(index)
        self.up.discard(index)

    def reset_queue(self, index: int) -> None:
        self.end(index)
        super().reset_queue(index)


def relay(kind: type[MmioDriver]) -> Bench:
    def valid(bench: Bench, program: Reader, queue: int) -> tuple[bytes, int]:
        if queue == REFUSED:  # a file system's
            return struct.pack("<IIQ24x", 40, program.choose((26, 1, program.number(1))), 7), program.below(100)
        header = struct.pack("<IIQ", program.choose((0, 1, 4, 11, 13)), 0, program.below(9))
        return header + bytes(program.below(200)), 1 + program.below(600)

    def put(bench: Bench, place: int, data: bytes) -> None:
        os.pwrite(bench.device.rings_fd, data, place)  # type: ignore[attr-defined]

    def get(bench: Bench, place: int) -> int:
        return int.from_bytes(os.pread(bench.device.rings_fd, 2, place), "little")  # type: ignore[attr-defined]

    def answer(bench: Bench, queue: int, head: int, written: int, more: int) -> None:
        index = get(bench, queue * PART + USED + 2)
        put(bench, queue * PART + USED + 4 + 8 * (index & 255), struct.pack("<II", head, written))
        put(bench, queue * PART + USED + 2, struct.pack("<H", index + more & 0xFFFF))

    def backend(bench: Bench, program: Reader) -> None:
        device, queue, what = bench.device, program.choose((0, 1, 0, 1, REFUSED)), program.below(8)
        assert isinstance(device, Relayed)
        if what < 4:  # answer the request that was passed on last, or one of those before
            newest = get(bench, queue * PART + AVAILABLE + 2) - 1 - program.choose((0, 0, 1, 2))
            head = get(bench, queue * PART + AVAILABLE + 4 + 2 * (newest & 255))
            written = program.choose((0, 1, 1, program.number(1), program.value() & 0xFFFFFFFF))
            if program.below(8) == 0:
                head = program.value() & 0xFFFFFFFF
            answer(bench, queue, head, written, program.choose((1, 1, 1, 1, 2, program.number(2))))
        elif what == 4:
            put(bench, queue * PART + program.number(2), program.bytes(program.below(32)))
        elif what == 5:
            device.collect(queue)
        elif what == 6:  # another one takes its place
            device.collect(queue)
            device.connect(queue, False)
            if queue in device.up or queue == REFUSED:
                device.begin(queue)
        else:
            device.connect(queue, False)
            device.up.discard(queue)
        assert 0 <= device.in_flight(queue) <= 256
        assert device.kept >= 0
        assert "\n" not in device.wrong()
        bench.settle()

    def check(bench: Bench) -> None:
        driver, memory = bench.driver, bench.memory
        refused = ask(bench, REFUSED, bytes(8) + b"unique!!" + bytes(24), 64)
        assert refused == struct.pack("<Ii", 16, -107) + b"unique!!"
        for queue in range(SERVED):
            memory.write(0x100000, struct.pack("<IIQ", 1, 0, 0) + b"data")
            driver.queues[queue].add([(0x100000, 20, False), (0x140000, 1, True)])
            driver.queues[queue].publish()
            bench.bell(queue)
            bench.settle()
            assert not driver.queues[queue].collect()
            assert get(bench, queue * PART + AVAILABLE + 2) == 1
            head = get(bench, queue * PART + AVAILABLE + 4)
            table = int.from_bytes(os.pread(bench.device.rings_fd, 8, queue * PART + 16 * head), "little")  # type: ignore[attr-defined]
            first = os.pread(bench.device.rings_fd, 16, table - RINGS_AT)  # type: ignore[attr-defined]
            assert struct.unpack_from("<QI", first) == (0x100000, 20)
            answer(bench, queue, head, 1, 1)
            bench.settle()
            assert [written for _, written in driver.queues[queue].collect()] == [1]

    return Bench(Relayed, kind, valid, check, own=(backend,))
