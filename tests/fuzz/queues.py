"""A queue alone, with rings of any bytes: one thread, and so many runs a second."""

from __future__ import annotations

from kvmkit.memory import GuestMemory
from kvmkit.virtio import features as f
from kvmkit.virtio.queue import Queue

from .poison import fence
from .reader import Reader

MEMORY = 0x10000
RING, DRIVER, DEVICE, TABLE = 0x1000, 0x2000, 0x3000, 0x4000
_memory: list[GuestMemory] = []


def memory() -> GuestMemory:
    if not _memory:
        _memory.append(GuestMemory(MEMORY))
        fence(_memory[0])
    return _memory[0]


def split(data: bytes) -> None:
    run(Reader(data), 0)


def packed(data: bytes) -> None:
    run(Reader(data), f.RING_PACKED)


def run(program: Reader, format_: int) -> None:
    ram = memory()
    ram.write(0, bytes(0x6000))
    choice = program.number(1)
    features = (
        format_ | f.INDIRECT_DESC * (choice & 1) | f.EVENT_IDX * (choice >> 1 & 1) | f.IN_ORDER * (choice >> 2 & 1)
    )
    size = 1 << (choice >> 3 & 3) if not choice & 128 else program.value()
    queue = Queue(ram, 0, 8)
    places = [program.value() if choice & 64 else place for place in (RING, DRIVER, DEVICE)]
    if not queue.enable(size, *places, features):
        assert queue.broken
        return
    for _ in range(24):
        step = program.below(8)
        if step == 0:
            ram.write(RING + 16 * program.below(8), descriptor(program))
        elif step == 1:
            ram.write(TABLE + 16 * program.below(8), descriptor(program))
        elif step == 2:
            ram.write(program.choose((RING, DRIVER, DEVICE)) + program.below(64), program.bytes(2))
        elif step == 3:
            index = program.below(8)
            ram.write(DRIVER + 4 + 2 * index, bytes([program.below(9), 0]))
            ram.write(DRIVER + 2, (index + 1).to_bytes(2, "little"))
        elif step == 4:
            queue.start()
        elif step == 5:
            queue.end()
            queue.signal()
        elif step == 6 and queue.ready:
            other = Queue(ram, 0, 8)
            other.restore(queue.state(), features)
            queue = other
        while (got := queue.get()) is not None:
            sent, room = got
            assert len(sent) + room > 0
            assert len(sent) <= 1 << 20
            queue.release(sent[: room + 1] or b"x" * min(room, 64))
        assert bool(queue.ready) != bool(queue.broken)
        if not program.more or not queue.ready:
            break


def descriptor(program: Reader) -> bytes:
    address = program.choose((0x8000, TABLE, 0, MEMORY - 8, program.value()))
    length = program.choose((1, 16, 48, 0, 0x8000, program.value() & 0xFFFFFFFF))
    flags = program.choose((0, 1, 2, 3, 4, 5, 0x80, 0x81, 0x82, 0x84, program.number(2)))
    last = (flags, program.below(9)) if program.flag() else (program.below(9), flags)
    return (
        address.to_bytes(8, "little") + length.to_bytes(4, "little") + b"".join(n.to_bytes(2, "little") for n in last)
    )
