"""The balloon by its queues: what goes back to the host, and what a hostile guest may try."""

from __future__ import annotations

import os
import struct
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver
from kvmkit.virtio.balloon import DEFLATE_ON_OOM, FREE_PAGE_HINT, PAGE_REPORTING, STATS_VQ, Balloon

MIB = 1 << 20
PAGE = 4096
ALL = STATS_VQ | DEFLATE_ON_OOM | FREE_PAGE_HINT | PAGE_REPORTING
INFLATE, DEFLATE, STATS, HINT, REPORT = range(5)
formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
kinds = pytest.mark.parametrize("shared", [False, True], ids=["anonymous", "memfd"])


def resident(memory: GuestMemory) -> int:
    """Bytes of guest memory that this process holds, by /proc/self/smaps; of a memfd, what the file holds."""
    if memory.fd >= 0:
        return os.fstat(memory.fd).st_blocks * 512
    start = memory.regions()[0][1]
    held = 0
    inside = False
    for line in Path("/proc/self/smaps").read_text().splitlines():
        first = line.split()[0]
        if "-" in first:
            low, _, high = first.partition("-")
            inside = int(low, 16) < start + memory.size and int(high, 16) > start
        elif inside and first == "Rss:":
            held += int(line.split()[1]) << 10
    return held


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 20
    while not true():
        assert time.monotonic() < end
        time.sleep(0.005)


def numbers(pages: range | list[int]) -> bytes:
    return struct.pack(f"<{len(pages)}I", *pages)


@formats
@kinds
def test_what_is_inflated_goes_back_to_the_host(packed: bool, shared: bool) -> None:
    memory = GuestMemory(32 * MIB, shared=shared)
    with MmioDriver(Balloon(memory), memory, packed=packed, features=ALL) as driver:
        driver.start()
        memory.write(8 * MIB, b"\1" * (16 * MIB))
        before = resident(memory)
        for first in range(2048, 2048 + 4096, 256):
            pages = range(first, first + 256)
            driver.request(INFLATE, numbers(list(reversed(pages)) if first % 512 else pages), 0)
        assert resident(memory) <= before - 15 * MIB
        assert driver.device.given_bytes == 16 * MIB
        assert memory.read(8 * MIB, PAGE) == bytes(PAGE)
        driver.request(INFLATE, numbers(range(2048, 2048 + 256)), 0)  # again: they are given already
        assert driver.device.given_bytes == 16 * MIB
        driver.request(DEFLATE, numbers(range(2048, 2048 + 256)), 0)
        assert driver.device.given_bytes == 15 * MIB
        memory.write(8 * MIB, b"\2" * PAGE)
        assert memory.read(8 * MIB, PAGE) == b"\2" * PAGE
    memory.close()


@formats
@kinds
def test_reported_pages_go_back(packed: bool, shared: bool) -> None:
    memory = GuestMemory(32 * MIB, shared=shared)
    with MmioDriver(Balloon(memory), memory, packed=packed, features=ALL) as driver:
        driver.start()
        memory.write(8 * MIB, b"\1" * (16 * MIB))
        before = resident(memory)
        ring = driver.queues[REPORT]
        ring.add([(8 * MIB, 2 * MIB, True), (12 * MIB, 4 * MIB, True), (20 * MIB + 100, 2 * PAGE, True)])
        driver.ring(REPORT)
        driver.collect(REPORT)
        assert resident(memory) <= before - 6 * MIB
        assert driver.device.returned_bytes == 6 * MIB + PAGE  # of the last, a page is whole
        assert memory.read(20 * MIB, 101) == b"\1" * 101
        assert memory.read(10 * MIB, 1) == b"\1"
    memory.close()


@formats
def test_free_pages_are_shown_when_asked_for(packed: bool) -> None:
    memory = GuestMemory(16 * MIB)
    with MmioDriver(Balloon(memory), memory, packed=packed, features=ALL) as driver:
        assert not driver.device.reclaim()
        driver.start()
        assert driver.register(0x108) == 1
        assert driver.device.reclaim()
        assert driver.wait_interrupt() == 2
        which = driver.register(0x108)
        memory.write(8 * MIB, b"\1" * (4 * MIB))
        ring = driver.queues[HINT]
        ring.add([(10 * MIB, MIB, True)])  # before it began: an older request's
        driver.ring(HINT)
        driver.collect(HINT)
        assert driver.device.returned_bytes == 0
        driver.request(HINT, struct.pack("<I", which), 0)
        ring.add([(8 * MIB, MIB, True)])
        driver.ring(HINT)
        driver.collect(HINT)
        assert memory.read(8 * MIB, 1) == b"\0"
        assert memory.read(10 * MIB, 1) == b"\1"
        driver.request(HINT, struct.pack("<I", 0), 0)
        until(lambda: driver.register(0x108) == 1)
        assert driver.device.returned_bytes == MIB
    memory.close()


@formats
def test_statistics(packed: bool) -> None:
    memory = GuestMemory(16 * MIB)
    with MmioDriver(Balloon(memory), memory, packed=packed, features=ALL) as driver:
        driver.start()
        at = driver.buffers

        def send(free: int) -> None:
            memory.write(at, struct.pack("<HQHQHQ", 4, free, 5, 1000, 99, 7))
            driver.queues[STATS].add([(at, 30, False)])
            driver.ring(STATS)

        send(500)
        until(lambda: driver.device.stats_came == 1)
        assert driver.queues[STATS].collect() == []  # it is kept until new ones are wanted
        assert driver.device.stats() == {"free_bytes": 500, "total_bytes": 1000}
        driver.device.ask_stats()
        driver.collect(STATS)
        send(400)
        until(lambda: driver.device.stats()["free_bytes"] == 400)
        driver.device.hold()
        driver.device.release()
        driver.device.ask_stats()
        driver.collect(STATS)
        send(300)
        until(lambda: driver.device.stats()["free_bytes"] == 300)
    memory.close()


@formats
def test_the_target_is_told(packed: bool) -> None:
    memory = GuestMemory(16 * MIB)
    with MmioDriver(Balloon(memory), memory, packed=packed, features=ALL) as driver:
        driver.start()
        driver.device.set_target(10 * MIB)
        assert driver.wait_interrupt() == 2
        assert driver.register(0x100) == 6 * 256
        assert driver.device.target == 10 * MIB
        driver.set(0x104, 5)
        assert driver.register(0x104) == 5
        for size in (0, 17 * MIB):
            with pytest.raises(BadInput):
                driver.device.set_target(size)
        driver.reset()
        driver.start()
        assert (driver.register(0x100), driver.register(0x104)) == (6 * 256, 0)
    memory.close()


def test_without_a_feature_the_queues_behind_its_own_move_up() -> None:
    memory = GuestMemory(16 * MIB)
    with MmioDriver(Balloon(memory), memory, features=PAGE_REPORTING) as driver:
        driver.start()
        memory.write(8 * MIB, b"\1" * MIB)
        driver.queues[2].add([(8 * MIB, MIB, True)])
        driver.ring(2)
        driver.collect(2)
        assert memory.read(8 * MIB, 1) == b"\0"
    memory.close()


@formats
@pytest.mark.parametrize(
    ("data", "why"),
    [
        (b"123", "page numbers that are cut off, or too many"),
        (numbers([4096]), "a page outside of memory"),
        (numbers([0xFFFFFFFF]), "a page outside of memory"),
        (bytes(65540), "page numbers that are cut off, or too many"),
    ],
)
def test_hostile_page_numbers(packed: bool, data: bytes, why: str) -> None:
    memory = GuestMemory(16 * MIB)
    said: list[str] = []
    with MmioDriver(Balloon(memory, log=said.append), memory, packed=packed, features=ALL) as driver:
        driver.start()
        memory.write(driver.buffers, data)
        driver.queues[INFLATE].add([(driver.buffers, len(data), False)])
        driver.ring(INFLATE)
        assert driver.wait_interrupt() & 2
        assert said == [f"balloon: the guest's driver must reset this device: queue 0: {why}"]
    memory.close()


@formats
@kinds
def test_persistent_memory_is_no_ram(packed: bool, shared: bool) -> None:
    memory = GuestMemory(16 * MIB, shared=shared, behind=2 * MIB)
    file = os.memfd_create("pmem")
    os.ftruncate(file, 2 * MIB)
    os.pwrite(file, b"kept", 5 * PAGE)
    address = memory.place(file, 2 * MIB, False)
    said: list[str] = []
    with MmioDriver(Balloon(memory, log=said.append), memory, packed=packed, features=ALL) as driver:
        driver.start()
        for queue in (HINT, REPORT):
            driver.queues[queue].add([(address, 2 * MIB, True)])
            driver.ring(queue)
            driver.collect(queue)
        memory.write(driver.buffers, numbers([address // PAGE + 5]))
        driver.queues[INFLATE].add([(driver.buffers, 4, False)])
        driver.ring(INFLATE)
        until(lambda: bool(said))
        assert said == ["balloon: the guest's driver must reset this device: queue 0: a page outside of memory"]
        assert driver.device.given_bytes == 0
        assert driver.device.returned_bytes == 0
        assert memory.read(address + 5 * PAGE, 4) == b"kept"
    os.close(file)
    memory.close()


@settings(max_examples=30, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(st.lists(st.tuples(st.booleans(), st.lists(st.integers(1024, 4095), max_size=40)), max_size=12))
def test_what_is_given_is_what_was_sent(sequence: list[tuple[bool, list[int]]]) -> None:
    memory = GuestMemory(16 * MIB)
    given_now: set[int] = set()
    with MmioDriver(Balloon(memory), memory, features=ALL) as driver:
        driver.start()
        for page in range(1024, 4096):
            memory.write(page * PAGE, b"\1")
        for inflate, pages in sequence:
            if pages:
                driver.request(INFLATE if inflate else DEFLATE, numbers(pages), 0)
            dropped = set(pages) - given_now if inflate else set()
            given_now = given_now | set(pages) if inflate else given_now - set(pages)
            assert driver.device.given_pages == len(given_now)
            assert all(memory.read(page * PAGE, 1) == b"\0" for page in dropped)
    memory.close()
