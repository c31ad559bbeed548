"""Devices on a PCI bus, with a driver in Python: registers, doorbells, messages, the pin."""

from __future__ import annotations

import gc
import os
import threading
from collections.abc import Iterator

import msgspec
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from resets import reset_in_the_midst

from kvmkit.bus import pc
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory
from kvmkit.testing.pci_driver import COMMON, DEVICE, ISR, NOTIFY, WINDOW, PciDriver
from kvmkit.virtio.device import VirtioDevice
from kvmkit.virtio.features import NOTIFICATION_DATA, RING_RESET
from kvmkit.virtio.pci import BAR_BYTES
from kvmkit.virtio.queue import Queue
from kvmkit.virtio.rng import Rng

MIB = 1 << 20

formats = pytest.mark.parametrize("packed", [False, True], ids=["split", "packed"])
ways = pytest.mark.parametrize("msix", [True, False], ids=["msix", "pin"])


class Reverse(VirtioDevice):
    """Sends back what it gets, from behind."""

    def __init__(self, memory: GuestMemory) -> None:
        super().__init__(memory, 42, [16, 16], name="reverse", config=b"config!!")
        self.written: list[tuple[int, int, int]] = []

    def handle(self, queue: Queue) -> None:
        while (got := queue.get()) is not None:
            queue.release(got[0][::-1])

    def config_written(self, offset: int, size: int, value: int) -> None:
        self.written.append((offset, size, value))


@pytest.fixture
def memory() -> Iterator[GuestMemory]:
    memory = GuestMemory(4 * MIB)
    before = set(threading.enumerate())
    gc.collect()
    descriptors = len(os.listdir("/proc/self/fd"))
    yield memory
    gc.collect()
    assert len(os.listdir("/proc/self/fd")) <= descriptors
    memory.close()
    assert set(threading.enumerate()) <= before


@formats
@ways
@pytest.mark.parametrize("events", [False, True], ids=["flags", "events"])
def test_a_device_answers(memory: GuestMemory, packed: bool, msix: bool, events: bool) -> None:
    with PciDriver(Reverse(memory), memory, packed=packed, msix=msix, events=events) as driver:
        driver.start()
        for turn in range(40):
            text = b"%d sent" % turn
            assert driver.request(turn % 2, text, 64) == text[::-1]
        while driver.wait_interrupt(0.05):  # an answer can be seen before its interrupt
            pass
        assert bool(driver.vm.levels) != msix
        assert any(driver.vm.levels.values()) is False


@formats
@ways
def test_reset_and_start_again_at_any_moment(memory: GuestMemory, packed: bool, msix: bool) -> None:
    with PciDriver(Rng(memory), memory, packed=packed, msix=msix) as driver:
        reset_in_the_midst(driver, memory, 20)
        driver.start()
        while driver.wait_interrupt(0.01):  # one that was on its way at a reset
            pass
        assert len(driver.request(0, b"", 16)) == 16


def test_the_device_is_what_the_specification_says(memory: GuestMemory) -> None:
    with PciDriver(Reverse(memory), memory) as driver:
        assert driver.config(0, 4) == (0x1040 + 42) << 16 | 0x1AF4
        assert driver.config(8, 1) >= 1
        assert driver.config(0x2E, 2) >= 0x40
        assert driver.places.keys() == {COMMON, NOTIFY, ISR, DEVICE, WINDOW}
        assert driver.register(0x12, 2) == 2
        assert driver.vm.read(driver.places[DEVICE], 4) == int.from_bytes(b"conf", "little")
        assert driver.bell(0) != driver.bell(1)
        driver.set(0x16, 2, 2)
        assert [driver.register(at, 2) for at in (0x18, 0x1C)] == [0, 0], "there is no queue 2"
        driver.set(0x18, 8, 2)
        driver.set(0x1C, 1, 2)
        assert driver.register(0x1A, 2) == 0xFFFF


def test_vectors_that_are_not_there_can_not_be_had(memory: GuestMemory) -> None:
    with PciDriver(Reverse(memory), memory) as driver:
        driver.start()
        for register, selected in ((0x10, 0), (0x1A, 0), (0x1A, 1)):
            driver.set(0x16, selected, 2)
            driver.set(register, 3, 2)
            assert driver.register(register, 2) == 0xFFFF
            driver.set(register, 2, 2)
            assert driver.register(register, 2) == 2
        driver.reset()
        assert driver.register(0x10, 2) == 0xFFFF


def test_a_queue_without_a_vector_keeps_quiet(memory: GuestMemory) -> None:
    with PciDriver(Reverse(memory), memory) as driver:
        driver.start()
        driver.set(0x16, 0, 2)
        driver.set(0x1A, 0xFFFF, 2)
        memory.write(driver.buffers, b"ab")
        driver.queues[0].add([(driver.buffers, 2, False), (driver.buffers + 64, 2, True)])
        driver.ring(0)
        assert driver.wait_interrupt(0.05) == 0
        assert driver.queues[0].collect()[0][1] == 2


@ways
def test_the_configuration_interrupts(memory: GuestMemory, msix: bool) -> None:
    with PciDriver(Reverse(memory), memory, msix=msix) as driver:
        driver.start()
        before = driver.register(0x15, 1)
        driver.device.set_config(b"changed!")
        assert driver.wait_interrupt() == 2
        assert driver.register(0x15, 1) == before + 1
        assert driver.vm.read(driver.places[DEVICE], 8).to_bytes(8, "little") == b"changed!"
        driver.vm.write(driver.places[DEVICE] + 4, 2, 0xABCD)
        assert driver.device.written == [(4, 2, 0xABCD)]


@formats
def test_a_queue_alone_is_reset(memory: GuestMemory, packed: bool) -> None:
    with PciDriver(Reverse(memory), memory, packed=packed, features=RING_RESET) as driver:
        driver.start()
        assert driver.request(1, b"ab", 8) == b"ba"
        driver.set(0x16, 1, 2)
        driver.set(0x3A, 1, 2)
        assert driver.register(0x3A, 2) == 0
        assert driver.register(0x1C, 2) == 0
        assert driver.request(0, b"cd", 8) == b"dc"
        driver.set_up(1)
        assert driver.request(1, b"ef", 8) == b"fe"


def test_notification_data_rings_as_well(memory: GuestMemory) -> None:
    with PciDriver(Reverse(memory), memory, features=NOTIFICATION_DATA) as driver:
        assert driver.start() & NOTIFICATION_DATA
        memory.write(driver.buffers, b"ab")
        driver.queues[1].add([(driver.buffers, 2, False), (driver.buffers + 64, 2, True)])
        driver.queues[1].publish()
        driver.vm.write(driver.bell(1), 4, 1 << 16 | 1)
        assert [written for _, written in driver.collect(1)] == [2]


def test_doorbells_follow_the_bar(memory: GuestMemory) -> None:
    with PciDriver(Reverse(memory), memory) as driver:
        driver.start()
        assert driver.request(0, b"ab", 8) == b"ba"
        old = driver.bell(0)
        base = pc.PCI_MMIO64_SIZE + 0x100000
        driver.set_config(0x10, 4, base & 0xFFFFFFFF)
        driver.set_config(0x14, 4, base >> 32)
        driver.find()
        assert driver.bell(0) != old
        assert driver.request(0, b"cd", 8) == b"dc"
        driver.set_config(4, 2, 0)
        assert driver.register(0x14, 1) == 0xFF, "nothing answers"
        assert driver.vm._bells == {}
        driver.set_config(4, 2, 6)
        assert driver.request(0, b"ef", 8) == b"fe"


def test_a_write_that_no_doorbell_took_rings(memory: GuestMemory) -> None:
    with PciDriver(Reverse(memory), memory) as driver:
        driver.start()
        driver.pci._silence()
        assert driver.request(0, b"ab", 8) == b"ba"


def test_the_window_in_configuration_space(memory: GuestMemory) -> None:
    with PciDriver(Reverse(memory), memory) as driver:
        at = driver.places[WINDOW]
        driver.set_config(at + 4, 1, 0)
        driver.set_config(at + 8, 4, 0x12)
        driver.set_config(at + 12, 4, 2)
        assert driver.config(at + 16, 2) == 2, "num_queues"
        driver.set_config(at + 8, 4, 0x16)
        driver.set_config(at + 16, 2, 1)
        assert driver.register(0x16, 2) == 1
        for bar, offset, length in ((1, 0, 4), (0, 0, 3), (0, 1, 4), (0, BAR_BYTES, 4), (0, 0xFFFFFFFC, 4), (0, 0, 8)):
            driver.set_config(at + 4, 1, bar)
            driver.set_config(at + 8, 4, offset)
            driver.set_config(at + 12, 4, length)
            driver.set_config(at + 16, 4, 0)
            assert driver.config(at + 16, 4) == 0xFFFFFFFF


def test_a_function_reset_resets_the_device(memory: GuestMemory) -> None:
    with PciDriver(Reverse(memory), memory) as driver:
        driver.start()
        assert driver.config(0x40, 1) == 0x10
        driver.set_config(0x48, 2, 0x8000)
        assert driver.device.status == 0
        assert driver.vm._bells == {}
        assert driver.vm.lines == {}
        driver.set_config(0x14, 4, pc.PCI_MMIO64_SIZE >> 32)
        driver.set_config(4, 2, 6)
        driver.start()
        assert driver.request(0, b"ab", 8) == b"ba"


@ways
def test_a_saved_state_goes_on_in_a_new_device(memory: GuestMemory, msix: bool) -> None:
    with PciDriver(Reverse(memory), memory, msix=msix) as driver:
        driver.start()
        assert driver.request(0, b"ab", 8) == b"ba"
        driver.device.hold()
        saved = driver.pci.state(), driver.device.state()
        saved = msgspec.msgpack.decode(msgspec.msgpack.encode(saved[0])), saved[1]
        with PciDriver(Reverse(memory), memory, msix=msix) as other:
            other.device.hold()
            other.device.restore(saved[1])
            other.pci.restore(saved[0])
            other.device.release()
            other.queues = driver.queues
            assert other.request(0, b"cd", 8) == b"dc"
        with PciDriver(Rng(memory), memory) as wrong, pytest.raises(BadInput, match="queues"):
            wrong.pci.restore(saved[0])


@settings(max_examples=40, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    started=st.booleans(),
    msix=st.booleans(),
    steps=st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(st.integers(0, 0x3B), st.integers(0, BAR_BYTES - 1)),
            st.sampled_from([1, 2, 4, 8]),
            st.one_of(st.integers(0, 16), st.integers(0, (1 << 64) - 1)),
        ),
        max_size=60,
    ),
)
def test_no_access_hurts(
    memory: GuestMemory, started: bool, msix: bool, steps: list[tuple[bool, int, int, int]]
) -> None:
    with PciDriver(Rng(memory), memory, msix=msix) as driver:
        if started:
            driver.start()
        base = driver.places[COMMON]
        for write, offset, size, value in steps:
            if write:
                driver.vm.write(base + offset, size, value)
            else:
                driver.vm.read(base + offset, size)
        driver.start()
        assert len(driver.request(0, b"", 8)) == 8
