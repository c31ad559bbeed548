"""A device on a transport, against a guest that does what a fuzzer's bytes say.

The bytes are a program of steps: registers, rings, doorbells, memory, resets, and requests that are right as far as
they go. What must hold: no step raises, at most one line is said for each time that a reset became due, nothing that
Python raised inside of a device is the reason, and afterwards the device works again.
"""

from __future__ import annotations

import functools
import os
import re
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
Step = Callable[["Bench", Reader], None]


class Bench:
    """One device for many runs. `valid` makes requests that reach far; `check` asks what has to be answered.

    `own` are more steps: what the host's side of this device does meanwhile.
    """

    def __init__(
        self,
        make: Callable[[GuestMemory, Callable[[str], None]], VirtioDevice],
        kind: type[MmioDriver],
        valid: Valid,
        check: Callable[[Bench], None],
        extra: int = 0,
        own: tuple[Step, ...] = (),
        behind: int = 0,
    ) -> None:
        self.memory = GuestMemory(MEMORY, behind=behind)
        fence(self.memory)
        self.said: list[str] = []
        self.device = make(self.memory, self.said.append)
        self.device.hold()  # its lanes take turns on this thread
        self.kind, self.valid, self.check, self.extra, self.own = kind, valid, check, extra, own
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
        steps += tuple(functools.partial(step, self) for step in self.own * 3)
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
        extra = self.extra & (self.program.number(4) if choice & 64 else -1)
        driver.wanted = f.VERSION_1 | extra | (f.RING_PACKED if choice & 1 else 0) | (f.EVENT_IDX if choice & 2 else 0)
        driver.wanted |= (f.INDIRECT_DESC if choice & 4 else 0) | (f.IN_ORDER if choice & 8 else 0)
        driver.wanted |= f.RING_RESET if choice & 16 else 0
        self.place(msix=bool(choice & 32))
        try:
            driver.start()
        except AssertionError:  # some features need others
            if not choice & 64:
                raise
            driver.wanted |= self.extra
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
        if program.flag():
            self.place(msix=self.driver.msix if isinstance(self.driver, PciDriver) else False)
            self.driver.reset()
        else:
            self.start()
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
        elif what == 3 and hasattr(self.device, "disk"):
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


def disk_file(size: int = DISK, **options: Any) -> Any:
    from kvmkit.block.file import DiskFile

    fd = os.memfd_create("fuzz-disk")
    os.ftruncate(fd, size)
    try:
        return DiskFile(f"/proc/self/fd/{fd}", **options)
    finally:
        os.close(fd)
