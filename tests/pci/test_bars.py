"""BARs answer where the guest puts them, inside the bridge's windows and nowhere else."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pci_parts import COMMAND, MEMORY, MIB, Bus, Memory

from kvmkit.bus import pc
from kvmkit.pci import Bar

LOW, HIGH = pc.PCI_MMIO, pc.PCI_MMIO64_SIZE


def ones(value: int) -> bool:
    return value & 0xFFFFFFFF == 0xFFFFFFFF


def test_a_bar_answers_only_while_memory_is_decoded(bus):
    device = Memory()
    function = bus.add(Bar(0, 0x1000, device))
    assert ones(bus.mmio.read(LOW, 4))
    bus.write(function, COMMAND, 2, MEMORY)
    bus.mmio.write(LOW + 8, 4, 77)
    assert device.values == {8: 77}
    assert bus.mmio.read(LOW + 8, 4) == 77
    bus.write(function, COMMAND, 2, 0)
    assert ones(bus.mmio.read(LOW, 4))


def test_a_bar_moves_and_its_owner_is_told(bus):
    function = bus.add(Bar(0, 0x1000, Memory()), Bar(2, 0x4000, Memory(), wide=True))
    told: list[tuple[int, int | None]] = []
    function.moved = lambda bar, address: told.append((bar.index, address))
    bus.write(function, COMMAND, 2, MEMORY)
    assert told == [(0, LOW), (2, HIGH)]
    told.clear()
    bus.move(function, 0, LOW + 0x7000)
    assert told == [(0, None), (0, LOW + 0x7000)]
    assert ones(bus.mmio.read(LOW, 4))
    assert bus.mmio.read(LOW + 0x7000, 4) == 0
    told.clear()
    # As Linux does it: half by half, and between the two it stands where nothing may be.
    bus.move(function, 2, HIGH + (3 << 32), wide=True)
    assert told == [(2, None), (2, HIGH + (3 << 32))]
    assert function.mapped == {0: LOW + 0x7000, 2: HIGH + (3 << 32)}


@pytest.mark.parametrize(
    "place",
    [0, 0x1000, 15 * MIB, 16 * MIB, 0xE0000000, 0xFEC00000, 0xFEE00000, 0xFFFFF000, LOW - 0x1000, pc.PCI_MMIO_END],
)
def test_a_bar_over_ram_or_a_chip_does_not_answer(bus, place):
    function = bus.add(Bar(0, 0x1000, Memory("it")))
    bus.memory.write(0x1000, b"guest")
    bus.write(function, COMMAND, 2, MEMORY)
    bus.move(function, 0, place)
    assert function.mapped == {}
    assert [base for base, _, _ in bus.mmio.describe()] == [pc.PCI_ECAM]
    assert bus.memory.read(0x1000, 5) == b"guest"
    bus.move(function, 0, LOW)
    assert function.mapped == {0: LOW}


@pytest.mark.parametrize("place", [1 << 33, (1 << 64) - 0x4000, (1 << 63) | HIGH, 2 * HIGH, HIGH - 0x4000, 0])
def test_a_wide_bar_outside_its_window_does_not_answer(bus, place):
    function = bus.add(Bar(0, 0x4000, Memory(), wide=True))
    bus.write(function, COMMAND, 2, MEMORY)
    bus.move(function, 0, place, wide=True)
    assert function.mapped == {}
    bus.move(function, 0, HIGH, wide=True)
    assert function.mapped == {0: HIGH}


def test_the_lower_slot_wins_until_it_leaves(bus):
    one, two = Memory("one"), Memory("two")
    first, second = bus.add(Bar(0, 0x1000, one)), bus.add(Bar(0, 0x4000, two))
    bus.write(second, COMMAND, 2, MEMORY)
    bus.move(second, 0, LOW)
    bus.mmio.write(LOW + 4, 4, 1)
    assert two.values == {4: 1}
    bus.write(first, COMMAND, 2, MEMORY)
    bus.mmio.write(LOW + 4, 4, 2)
    assert one.values == {4: 2}
    assert second.mapped == {}
    bus.write(first, COMMAND, 2, 0)
    bus.mmio.write(LOW + 4, 4, 3)
    assert two.values == {4: 3}


def test_a_function_that_is_reset_decodes_nothing(bus):
    function = bus.add(Bar(0, 0x1000, Memory()))
    resets: list[bool] = []
    function.on_reset = lambda: resets.append(True)
    express = bus.capability(function, 0x10)
    bus.write(function, COMMAND, 2, MEMORY | 4)
    bus.write(function, express + 8, 2, 0x8000)
    assert resets == [True]
    assert bus.read(function, COMMAND, 2) == 0
    assert bus.read(function, 0x10, 4) == 0
    assert function.mapped == {}
    assert bus.read(function, express + 8, 2) == 0, "the bit that starts it reads as 0"


def test_the_wide_window_is_above_all_ram():
    for end, start in ((1 << 30, 16 << 30), (16 << 30, 16 << 30), ((16 << 30) + 1, 32 << 30), (100 << 30, 112 << 30)):
        assert pc.pci_mmio64(end) == start


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.integers(1, 3),
            st.sampled_from([COMMAND, 0x10, 0x14, 0x18]),
            st.one_of(
                st.sampled_from([0, 2, 3, 4, LOW, LOW + 0x1000, LOW + 0x4000, 0xFFFFFFFF, 0xFEE00000, 0x1000]),
                st.integers(0, 0xFFFFFFFF),
            ),
        ),
        max_size=80,
    )
)
def test_whatever_the_guest_does_no_two_answer_at_one_place(writes):
    bus = Bus()
    try:
        functions = [
            bus.add(Bar(0, 0x1000, Memory()), Bar(1, 0x8000, Memory())),
            bus.add(Bar(0, 0x4000, Memory(), wide=True)),
            bus.add(Bar(0, 0x1000, Memory()), Bar(1, 0x4000, Memory(), wide=True)),
        ]
        for slot, register, value in writes:
            bus.port_write(slot, register, 4, value)
        mapped = bus.mmio.describe()
        for base, size, _ in mapped:
            assert base == pc.PCI_ECAM or LOW <= base < base + size <= pc.PCI_MMIO_END or HIGH <= base < 2 * HIGH
        for (base, size, _), (following, _, _) in itertools.pairwise(mapped):
            assert base + size <= following
        answering = {base for base, _, _ in mapped} - {pc.PCI_ECAM}
        assert answering == {address for function in functions for address in function.mapped.values()}
        assert len(bus.mmio.describe()) <= 6
    finally:
        bus.close()
