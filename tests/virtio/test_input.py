"""The keyboard and the tablet against a driver in Python, and Linux."""

from __future__ import annotations

import struct
from collections.abc import Callable, Iterator

import pytest

from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.testing import MmioDriver, PciDriver
from kvmkit.virtio.input import KEYS, MOST_PENDING, Input, button, move, press, typed

MIB = 1 << 20
Make = Callable[..., MmioDriver]


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(4 * MIB)
    yield memory
    memory.close()


def ask(driver: MmioDriver, select: int, subselect: int = 0) -> bytes:
    """What the configuration space says to a question."""
    driver.set(0x100, select, size=1)
    driver.set(0x101, subselect, size=1)
    size = driver.register(0x102, 1)
    return bytes(driver.register(0x108 + i, 1) for i in range(size))


def bits(data: bytes) -> set[int]:
    return {8 * i + bit for i, byte in enumerate(data) for bit in range(8) if byte >> bit & 1}


def test_what_a_keyboard_says_of_itself(memory: GuestMemory) -> None:
    with MmioDriver(Input(memory, "keyboard"), memory) as driver:
        driver.negotiate()
        assert ask(driver, 1) == b"kvmkit keyboard"
        assert bits(ask(driver, 0x11, 1)) == set(KEYS.values())
        assert {KEYS["a"], KEYS["enter"], KEYS["space"], KEYS["leftmeta"]} == {30, 28, 57, 125}
        assert ask(driver, 0x11, 3) == b""
        assert ask(driver, 0xEE, 7) == b""
        driver.set(0x102, 9, size=1)  # not the driver's to write
        assert ask(driver, 1) == b"kvmkit keyboard"


def test_what_a_tablet_says_of_itself(memory: GuestMemory) -> None:
    with MmioDriver(Input(memory, "tablet"), memory) as driver:
        driver.negotiate()
        assert bits(ask(driver, 0x11, 3)) == {0, 1}
        assert struct.unpack("<5I", ask(driver, 0x12, 1))[:2] == (0, 32767)
        assert bits(ask(driver, 0x11, 1)) == {0x110, 0x111, 0x112}


@pytest.mark.parametrize("kind", [MmioDriver, PciDriver], ids=["mmio", "pci"])
@pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
def test_events_arrive_in_order(memory: GuestMemory, kind: type[MmioDriver], packed: bool) -> None:
    device = Input(memory, "tablet")
    with kind(device, memory, packed=packed) as driver:
        assert not device.inject(move(0, 0))  # no driver yet
        driver.start()
        events = move(1, 0.5) + button("left", True) + button("left", False)
        assert device.inject(events)
        assert device.waiting == len(events)
        places = {}
        for i in range(len(events) + 2):
            at = driver.buffers + 64 * i
            places[driver.queues[0].add([(at, 8, True)])] = at
        driver.ring(0)
        found = driver.collect(0, len(events))
        assert [struct.unpack("<HHi", memory.read(places[number], 8)) for number, _ in found] == events
        assert device.inject(move(0, 1))  # the two buffers that are left; the third event waits
        assert len(driver.collect(0, 2)) == 2
        assert device.waiting == 1
        assert driver.request(1, struct.pack("<HHi", 0x11, 0, 1), 0) == b""
        driver.reset()
        assert device.waiting == 0


def test_a_guest_that_takes_nothing(memory: GuestMemory) -> None:
    device = Input(memory, "keyboard")
    with MmioDriver(device, memory) as driver:
        driver.start()
        taken = sum(device.inject(press("a")) for _ in range(MOST_PENDING))
        assert taken == MOST_PENDING // 4
        assert device.waiting == MOST_PENDING


def test_text_as_keys() -> None:
    assert [code for kind, code, value in typed("aA!\n") if kind == 1 and value] == [30, 42, 30, 42, 2, 28]
    for bad in (lambda: typed("é"), lambda: press("nokey"), lambda: move(2, 0), lambda: button("fourth", True)):
        with pytest.raises(BadInput):
            bad()
    with pytest.raises(BadInput):
        Input(GuestMemory(MIB), "mouse")
