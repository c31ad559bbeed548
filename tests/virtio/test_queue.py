"""Queues against a driver's side written apart from them, and against guests that mean harm."""

from __future__ import annotations

import os
import struct

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.memory import GuestMemory
from kvmkit.testing import PackedRing, SplitRing
from kvmkit.virtio import features as f
from kvmkit.virtio.queue import Queue

MEMORY = 1 << 20
RING = 0x1000
BUFFERS = 0x10000
TABLE = 0x8000
SIZE = 8


class Pair:
    """A device's queue and a driver's ring over one memory."""

    def __init__(self, packed: bool, features: int = 0, size: int = SIZE) -> None:
        self.memory = GuestMemory(MEMORY)
        self.interrupt = os.eventfd(0, os.EFD_NONBLOCK)
        self.features = features | f.INDIRECT_DESC | (f.RING_PACKED if packed else 0)
        kind = PackedRing if packed else SplitRing
        self.ring = kind(self.memory, RING, size, event_index=bool(features & f.EVENT_IDX))
        self.queue = Queue(self.memory, 0, 64)
        self.queue.wire(-1, self.interrupt)
        self.enabled = self.enable(size)

    def enable(self, size: int) -> bool:
        return self.queue.enable(size, self.ring.descriptors, self.ring.driver, self.ring.device, self.features)

    def interrupted(self) -> bool:
        try:
            return os.eventfd_read(self.interrupt) > 0
        except BlockingIOError:
            return False

    def close(self) -> None:
        os.close(self.interrupt)
        self.memory.close()

    def __enter__(self) -> Pair:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
events = pytest.mark.parametrize("features", [0, f.EVENT_IDX], ids=["flags", "events"])


@formats
@events
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
def test_requests_go_around_the_ring_many_times(packed: bool, features: int, indirect: bool) -> None:
    with Pair(packed, features) as p:
        for turn in range(100):
            sent = [bytes([turn, i]) * (i + 1) for i in range(2)]
            wanted = {}
            for i, text in enumerate(sent):
                base = BUFFERS + 0x1000 * i
                p.memory.write(base, text)
                parts = [(base, 1, False), (base + 1, len(text) - 1, False), (base + 64, 5, True)]
                wanted[p.ring.add(parts, TABLE + 256 * i if indirect else None)] = text[::-1][:5]
            p.ring.publish()
            while (got := p.queue.get()) is not None:
                data, room = got
                assert (data, room) == (sent.pop(0), 5)
                p.queue.release(data[::-1])
            assert not sent
            back = p.ring.collect()
            assert dict(back) == {n: len(text) for n, text in wanted.items()}
            for i, text in enumerate(wanted.values()):
                assert p.memory.read(BUFFERS + 0x1000 * i + 64, len(text)) == text
        assert p.queue.broken == ""


@formats
@events
def test_the_doorbell_is_wanted_exactly_while_nobody_looks(packed: bool, features: int) -> None:
    with Pair(packed, features) as p:
        for _ in range(50):
            assert not p.queue.end()
            p.ring.add([(BUFFERS, 4, False)])
            assert p.ring.publish(), "it waits, and has to be told"
            p.queue.start()
            p.ring.add([(BUFFERS, 4, False)])
            assert not p.ring.publish(), "it is at work, and looks again by itself"
            assert p.queue.end(), "it would have slept over the second one"
            p.queue.start()
            for _ in range(2):
                assert p.queue.get() is not None
                p.queue.release()
            assert len(p.ring.collect()) == 2


@formats
@events
def test_one_interrupt_for_a_batch_and_only_if_asked(packed: bool, features: int) -> None:
    with Pair(packed, features) as p:
        for turn in range(50):
            wanted = turn % 3 != 0
            p.ring.want_interrupt(wanted)
            for _ in range(3):
                p.ring.add([(BUFFERS, 4, False)])
            p.ring.publish()
            for _ in range(3):
                assert p.queue.get() is not None
                p.queue.release()
            assert not p.interrupted()
            p.queue.signal()
            assert p.interrupted() == wanted
            p.queue.signal()
            assert not p.interrupted()
            p.ring.collect()


@formats
def test_a_saved_queue_goes_on_where_it_stood(packed: bool) -> None:
    with Pair(packed) as p:
        for turn in range(3 * SIZE):
            p.ring.add([(BUFFERS, 4, False)])
            p.ring.publish()
            other = Queue(p.memory, 0, 64)
            other.restore(p.queue.state(), p.features)
            p.queue = other
            assert p.queue.get() is not None, turn
            p.queue.release()
            assert len(p.ring.collect()) == 1


@formats
def test_an_answer_has_no_more_than_its_room(packed: bool) -> None:
    with Pair(packed) as p:
        p.memory.write(BUFFERS, b"#" * 16)
        p.ring.add([(BUFFERS, 4, True)])
        p.ring.publish()
        assert p.queue.get() == (b"", 4)
        p.queue.release(b"0123456789")
        assert p.ring.collect()[0][1] == 4
        assert p.memory.read(BUFFERS, 8) == b"0123####"


BAD_PARTS = {
    "no bytes": ([(BUFFERS, 0, False)], "no bytes"),
    "outside": ([(MEMORY - 1, 2, False)], "outside of memory"),
    "far outside": ([(1 << 63, 16, True)], "outside of memory"),
    "around the end": ([((1 << 64) - 8, 16, True)], "outside of memory"),
    "order": ([(BUFFERS, 4, True), (BUFFERS, 4, False)], "stands behind one to be written"),
    "beyond 1 MiB": ([(0, MEMORY, False), (0, MEMORY, False)], "more bytes than this device takes"),
}


@formats
@pytest.mark.parametrize("indirect", [False, True], ids=["direct", "indirect"])
@pytest.mark.parametrize(("parts", "why"), BAD_PARTS.values(), ids=BAD_PARTS.keys())
def test_a_bad_chain_ends_the_queue(packed: bool, indirect: bool, parts: list[tuple[int, int, bool]], why: str) -> None:
    with Pair(packed) as p:
        p.ring.add(parts, TABLE if indirect else None)
        p.ring.publish()
        before = p.memory.read(0, MEMORY)
        assert p.queue.get() is None
        assert why in p.queue.broken
        assert not p.queue.has()
        assert not p.queue.end()
        assert p.memory.read(0, MEMORY) == before


def test_a_chain_that_bites_its_tail() -> None:
    with Pair(False) as p:
        number = p.ring.add([(BUFFERS, 4, False)])
        p.memory.write(RING + 16 * number, struct.pack("<QIHH", BUFFERS, 4, 1, number))
        p.ring.publish()
        assert p.queue.get() is None
        assert "leads back into itself" in p.queue.broken


def test_an_index_that_jumps() -> None:
    with Pair(False) as p:
        p.memory.write(p.ring.driver + 2, struct.pack("<H", SIZE + 1))
        assert p.queue.get() is None
        assert "jumped" in p.queue.broken


def test_a_packed_ring_of_nothing_but_next() -> None:
    with Pair(True) as p:
        for i in range(SIZE):
            p.memory.write(RING + 16 * i, struct.pack("<QIHH", BUFFERS, 4, 0, 1 | 1 << 7))
        assert p.queue.get() is None
        assert "more places than the ring has" in p.queue.broken


@formats
@pytest.mark.parametrize(
    ("size", "base"), [(0, RING), (65, RING), (128, RING), (8, RING + 1), (8, MEMORY - 16), (8, 1 << 63)]
)
def test_rings_that_can_not_be_are_refused(packed: bool, size: int, base: int) -> None:
    with Pair(packed) as p:
        assert not p.queue.enable(size, base, base + 0x1000, base + 0x2000, p.features)
        assert p.queue.broken != ""
        assert p.queue.get() is None


chunk = st.binary(min_size=16, max_size=16)
descriptor = st.builds(
    lambda address, length, a, b: struct.pack("<QIHH", address, length, a, b),
    st.one_of(st.integers(0, MEMORY + 64), st.integers(0, (1 << 64) - 1)),
    st.one_of(st.integers(0, 128), st.integers(0, (1 << 32) - 1)),
    st.one_of(st.integers(0, 15), st.sampled_from([0x80, 0x81, 0x82, 0x84, 0x8000]), st.integers(0, 0xFFFF)),
    st.one_of(st.integers(0, 15), st.sampled_from([0x80, 0x81, 0x82, 0x84, 0x8000]), st.integers(0, 0xFFFF)),
)


@given(
    packed=st.booleans(),
    table=st.lists(st.one_of(descriptor, chunk), min_size=2 * SIZE, max_size=2 * SIZE),
    ring=st.binary(min_size=64, max_size=64),
    features=st.sampled_from([0, f.EVENT_IDX, f.IN_ORDER, f.EVENT_IDX | f.IN_ORDER]),
)
@settings(max_examples=400, deadline=None)
def test_whatever_a_guest_writes_the_queue_ends_or_answers(
    packed: bool, table: list[bytes], ring: bytes, features: int
) -> None:
    with Pair(packed, features) as p:
        p.memory.write(RING, b"".join(table))
        p.memory.write(p.ring.driver, ring[: p.ring.end - p.ring.driver])
        p.queue.start()
        for _ in range(4 * SIZE):
            got = p.queue.get()
            if got is None:
                break
            data, room = got
            assert len(data) + room > 0
            p.queue.release(data[:room])
        p.queue.signal()
        p.queue.end()
        if not p.queue.ready:
            assert p.queue.broken
            assert not p.queue.has()
