"""Devices by their registers, with a driver in Python and no guest."""

from __future__ import annotations

import os
import threading

import pytest
from resets import reset_in_the_midst

from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.testing.driver import RING_RESET, MmioDriver
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.queue import Queue
from kvmkit.virtio.rng import Rng

MIB = 1 << 20

formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
events = pytest.mark.parametrize("events", [False, True], ids=["flags", "events"])


class Reverse(VirtioDevice):
    """Sends back what it gets, from behind."""

    def __init__(self, memory: GuestMemory, **options: object) -> None:
        super().__init__(memory, 42, [16, 16], name="reverse", config=b"config!!", **options)  # type: ignore[arg-type]

    def handle(self, queue: Queue) -> None:
        while (got := queue.get()) is not None:
            if got[0] == b"fall":
                raise ValueError("it fell")
            queue.release(got[0][::-1])


@pytest.fixture
def memory():
    memory = GuestMemory(4 * MIB)
    before = set(threading.enumerate())
    yield memory
    memory.close()
    assert set(threading.enumerate()) <= before


@formats
@events
@pytest.mark.parametrize("table", [False, True], ids=["direct", "indirect"])
def test_a_device_in_python_answers(memory: GuestMemory, packed: bool, events: bool, table: bool) -> None:
    with MmioDriver(Reverse(memory), memory, packed=packed, events=events) as driver:
        driver.start()
        for turn in range(40):
            text = b"%d sent" % turn
            assert driver.request(turn % 2, text, 64, table=table) == text[::-1]


@formats
def test_random_bytes(memory: GuestMemory, packed: bool) -> None:
    with MmioDriver(Rng(memory), memory, packed=packed) as driver:
        driver.start()
        answers = [driver.request(0, b"", 64) for _ in range(100)]
        assert len(set(answers)) == 100
        assert all(len(answer) == 64 for answer in answers)


@formats
def test_reset_and_start_again_at_any_moment(memory: GuestMemory, packed: bool) -> None:
    with MmioDriver(Rng(memory), memory, packed=packed) as driver:
        reset_in_the_midst(driver, memory, 30)
        driver.start()
        assert len(driver.request(0, b"", 16)) == 16


@formats
def test_a_queue_alone_is_reset(memory: GuestMemory, packed: bool) -> None:
    with MmioDriver(Reverse(memory), memory, packed=packed, features=RING_RESET) as driver:
        driver.start()
        assert driver.request(1, b"ab", 8) == b"ba"
        driver.set(0x30, 1)
        driver.set(0xC0, 1)
        assert driver.register(0xC0) == 0
        assert driver.register(0x44) == 0
        assert driver.request(0, b"cd", 8) == b"dc"
        driver.set_up(1)
        assert driver.request(1, b"ef", 8) == b"fe"


@formats
def test_hold_and_go_on(memory: GuestMemory, packed: bool) -> None:
    with MmioDriver(Reverse(memory), memory, packed=packed) as driver:
        driver.start()
        driver.device.hold()
        memory.write(driver.buffers, b"xy")
        driver.queues[0].add([(driver.buffers, 2, False), (driver.buffers + 64, 2, True)])
        driver.ring(0)
        assert driver.wait_interrupt(0.05) == 0
        driver.device.release()
        assert driver.collect(0)[0][1] == 2
        assert memory.read(driver.buffers + 64, 2) == b"yx"


@formats
@events
def test_a_malformed_chain_needs_a_reset_and_says_so_once(memory: GuestMemory, packed: bool, events: bool) -> None:
    said: list[str] = []
    with MmioDriver(Rng(memory, name="rng0", log=said.append), memory, packed=packed, events=events) as driver:
        driver.start()
        driver.queues[0].add([(1 << 40, 64, True)])
        driver.ring(0)
        assert driver.wait_interrupt() & 2
        assert driver.register(0x70) == 0x4F
        assert said == [
            "rng0: the guest's driver must reset this device: queue 0: a descriptor points outside of memory"
        ]
        driver.set(0x50, 0)
        driver.start()
        assert driver.register(0x70) == 15
        assert len(driver.request(0, b"", 16)) == 16
        assert len(said) == 1


def test_a_fault_of_a_python_device_ends_the_device_only(memory: GuestMemory) -> None:
    said: list[str] = []
    with MmioDriver(Reverse(memory, log=said.append), memory) as driver:
        driver.start()
        memory.write(driver.buffers, b"fall")
        driver.queues[0].add([(driver.buffers, 4, False)])
        driver.ring(0)
        assert driver.wait_interrupt() & 2
        assert "ValueError: it fell" in said[0]
        driver.start()
        assert driver.request(0, b"ab", 2) == b"ba"


def test_config_space_and_its_generation(memory: GuestMemory) -> None:
    with MmioDriver(Reverse(memory), memory) as driver:
        driver.start()
        assert driver.register(0x100, 8) == int.from_bytes(b"config!!", "little")
        assert driver.register(0x104, 2) == int.from_bytes(b"ig", "little")
        assert driver.register(0x108) == 0
        before = driver.register(0xFC)
        driver.device.set_config(b"CONFIG!!")
        assert driver.wait_interrupt() == 2
        assert driver.register(0xFC) != before
        assert driver.register(0x100, 1) == ord("C")


def test_features_are_what_both_know(memory: GuestMemory) -> None:
    with MmioDriver(Reverse(memory), memory) as driver:
        driver.reset()
        driver.set(0x70, 3)
        driver.set(0x24, 0)
        driver.set(0x20, 1)  # not offered
        driver.set(0x24, 1)
        driver.set(0x20, 1)
        driver.set(0x70, 11)
        assert driver.register(0x70) == 3
        driver.reset()
        driver.set(0x70, 11)  # a legacy driver
        assert driver.register(0x70) == 3
        driver.set(0x70, 15)
        assert driver.register(0x70) == 3
        assert not driver.device.driver_ok


def test_what_a_driver_asks_for_before_it_settles_is_saved(memory: GuestMemory) -> None:
    with MmioDriver(Reverse(memory), memory) as driver, MmioDriver(Reverse(memory), memory) as other:
        driver.reset()
        driver.set(0x70, 3)
        driver.set(0x24, 1)
        driver.set(0x20, 0xFFFFFFFF)  # far more than is offered
        for device in (driver.device, other.device):
            device.hold()
        other.device.restore(driver.device.state())
        assert other.device.state() == driver.device.state()
        settled = {**driver.device.state(), "status": 11}
        with pytest.raises(BadInput, match="features that this device does not offer"):
            other.device.restore(settled)
        with pytest.raises(BadInput, match="never settled"):
            other.device.restore({**driver.device.state(), "status": 7})
        with pytest.raises(BadInput, match="do not go together"):  # a legacy driver's
            other.device.restore({**driver.device.state(), "status": 11, "accepted": 0})


def test_no_descriptor_stays(memory: GuestMemory) -> None:
    before = len(os.listdir("/proc/self/fd"))
    with MmioDriver(Reverse(memory), memory) as driver:
        driver.start()
    del driver
    assert len(os.listdir("/proc/self/fd")) <= before


@formats
def test_a_saved_device_goes_on(memory: GuestMemory, packed: bool) -> None:
    with MmioDriver(Reverse(memory), memory, packed=packed) as driver:
        driver.start()
        driver.request(0, b"ab", 2)
        driver.device.hold()
        saved, registers = driver.device.state(), driver.transport.state()
        driver.transport.close()
        driver.device.close()
        with MmioDriver(Reverse(memory), memory, packed=packed) as other:
            other.device.hold()
            other.device.restore(saved)
            other.transport.restore(registers)
            other.queues = driver.queues
            other.device.release()
            assert other.request(0, b"cd", 2) == b"dc"
