"""MSI-X: messages, masks, and what is pending under them."""

from __future__ import annotations

import os

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pci_parts import COMMAND, Bus

from kvmkit.errors import BadInput
from kvmkit.pci.routes import MOST_VECTORS

MESSAGE = 0xFEE00000
ENABLE, FUNCTION_MASK = 0x8000, 0x4000


class Driver:
    """A guest's side of a device with `count` vectors."""

    def __init__(self, bus: Bus, count: int) -> None:
        self.bus = bus
        self.function = bus.add_msix(count)
        self.msix = self.function.msix
        self.at = self.function.mapped[0]
        self.control = bus.capability(self.function, 0x11) + 2

    def set_control(self, bits: int) -> None:
        self.bus.write(self.function, self.control, 2, bits)

    def message(self, index: int, vector: int, *, masked: bool = False, address: int = MESSAGE) -> None:
        """Fill an entry as Linux does: under its mask."""
        entry = self.at + 16 * index
        self.bus.mmio.write(entry + 12, 4, 1)
        self.bus.mmio.write(entry, 4, address & 0xFFFFFFFF)
        self.bus.mmio.write(entry + 4, 4, address >> 32)
        self.bus.mmio.write(entry + 8, 4, vector)
        self.mask(index, masked)

    def mask(self, index: int, masked: bool) -> None:
        self.bus.mmio.write(self.at + 16 * index + 12, 4, int(masked))

    def pending(self) -> int:
        return self.bus.mmio.read(self.at + 0x8000, 8)


@pytest.fixture
def driver(bus):
    return Driver(bus, 4)


def test_the_capability_says_where_everything_is(bus, driver):
    capability = driver.control - 2
    assert bus.read(driver.function, capability + 2, 2) == 3
    assert bus.read(driver.function, capability + 4, 4) == 0
    assert bus.read(driver.function, capability + 8, 4) == 0x8000
    assert [bus.mmio.read(driver.at + 16 * i + 12, 4) for i in range(4)] == [1] * 4, "masked at the start"


def test_an_interrupt_is_the_message_of_its_entry(bus, driver):
    driver.set_control(ENABLE)
    driver.message(0, 0x41)
    driver.message(3, 0x55)
    os.eventfd_write(driver.msix.fds[3], 1)
    assert bus.arrives(0x55)
    assert bus.interrupts() == {0x55}
    driver.msix.trigger(0)
    assert bus.arrives(0x41)
    assert driver.pending() == 0


@pytest.mark.parametrize("how", ["entry", "function"])
def test_what_happens_under_a_mask_comes_when_it_is_lifted(bus, driver, how):
    driver.set_control(ENABLE | (FUNCTION_MASK if how == "function" else 0))
    driver.message(1, 0x61, masked=how == "entry")
    driver.msix.trigger(1)
    driver.msix.trigger(1)
    assert driver.pending() == 2
    assert bus.interrupts() == set()
    if how == "entry":
        driver.mask(1, False)
    else:
        driver.set_control(ENABLE)
    assert bus.arrives(0x61)
    assert driver.pending() == 0


def test_a_vector_that_is_masked_again_keeps_quiet(bus, driver):
    driver.set_control(ENABLE)
    driver.message(2, 0x71)
    driver.mask(2, True)
    driver.msix.trigger(2)
    assert driver.pending() == 4
    driver.message(2, 0x72)
    assert bus.arrives(0x72)
    assert 0x71 not in bus.interrupts()


def test_what_was_pending_is_forgotten_when_it_is_turned_on_anew(bus, driver):
    driver.set_control(ENABLE)
    driver.msix.trigger(0)
    assert driver.pending() == 1
    driver.set_control(0)
    assert driver.pending() == 0
    driver.msix.trigger(0)
    driver.set_control(ENABLE)
    assert driver.pending() == 0


@pytest.mark.parametrize("address", [0, 0x1000, 0xFED00000, 0xFEF00000, 0x1_FEE00000, (1 << 64) - 4])
def test_a_message_to_no_local_apic_goes_nowhere(bus, driver, address):
    driver.set_control(ENABLE)
    driver.message(0, 0x41, address=address)
    driver.msix.trigger(0)
    driver.message(1, 0x42)
    driver.msix.trigger(1)
    assert bus.arrives(0x42)
    assert bus.interrupts() == {0x42}


def test_intx_is_used_until_msix_is_on(bus):
    function = bus.add(interrupt_pin=1)
    gsi = bus.bridge.gsi(function.slot, 1)
    levels: list[int] = []
    bus.bridge._pin_lines[gsi].line = levels.append
    function.interrupt(True)
    assert bus.read(function, 6, 2) & 8
    bus.write(function, COMMAND, 2, 0x400)
    function.interrupt(False)
    function.interrupt(True)
    bus.write(function, COMMAND, 2, 0)
    function.interrupt(False)
    assert levels == [1, 0, 1, 0]


def test_a_shared_line_is_up_while_one_of_its_pins_is(bus):
    functions = [bus.add(interrupt_pin=1) for _ in range(5)]
    first, fifth = functions[0], functions[4]
    assert bus.bridge.gsi(first.slot, 1) == bus.bridge.gsi(fifth.slot, 1)
    levels: list[int] = []
    bus.bridge._pin_lines[bus.bridge.gsi(first.slot, 1)].line = levels.append
    first.interrupt(True)
    fifth.interrupt(True)
    first.interrupt(False)
    assert levels == [1]
    fifth.interrupt(False)
    assert levels == [1, 0]


def test_a_reset_masks_and_forgets(bus, driver):
    driver.set_control(ENABLE)
    driver.message(0, 0x41)
    driver.function.reset()
    assert not driver.msix.enabled
    os.eventfd_write(driver.msix.fds[0], 1)
    bus.write(driver.function, COMMAND, 2, 2)
    assert driver.function.mapped == {}
    driver.bus.move(driver.function, 0, driver.at, wide=True)
    assert bus.mmio.read(driver.at + 12, 4) == 1
    assert bus.interrupts() == set()


def test_a_saved_state_is_taken_up(bus, driver):
    driver.set_control(ENABLE)
    driver.message(0, 0x41)
    driver.message(1, 0x42, masked=True)
    driver.msix.trigger(1)
    state, config = driver.msix.state(), driver.function.config.state()
    assert state.pending == [1]
    other = Driver(bus, 4)
    other.function.config.restore(config)
    other.msix.restore(state)
    other.msix.trigger(0)
    assert bus.arrives(0x41)
    assert other.msix.is_pending(1)
    other.bus.mmio.write(other.at + 16 + 12, 4, 0)
    other.msix.write_table(16 + 12, 4, 0)
    assert bus.arrives(0x42)
    with pytest.raises(BadInput, match="vectors"):
        Driver(bus, 3).msix.restore(state)


def test_there_is_an_end_to_vectors(bus):
    bus.add_msix(MOST_VECTORS)
    with pytest.raises(BadInput, match="fewer queues"):
        bus.add_msix(1)


@settings(max_examples=25, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.sampled_from(["table", "pending", "control", "trigger"]),
            st.integers(0, 80),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=30,
    )
)
def test_no_access_hurts(steps):
    bus = Bus()
    try:
        driver = Driver(bus, 4)
        for what, offset, size, value in steps:
            if what == "table":
                bus.mmio.write(driver.at + offset, size, value)
                bus.mmio.read(driver.at + offset, size)
            elif what == "pending":
                bus.mmio.write(driver.at + 0x8000 + offset, size, value)
                bus.mmio.read(driver.at + 0x8000 + offset, size)
            elif what == "control":
                driver.set_control(value & 0xFFFF)
            else:
                driver.msix.trigger(offset)
        for index in range(4):
            assert bus.mmio.read(driver.at + 16 * index + 12, 4) in (0, 1)
    finally:
        bus.close()
