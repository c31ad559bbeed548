"""Configuration space: what a guest reads there, and which bits it can change."""

from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from pci_parts import BAR0, BAR1, COMMAND, IDENTITY, MEMORY, Bus, Memory

from kvmkit.bus import pc
from kvmkit.errors import BadInput
from kvmkit.pci import Bar, ConfigSpace
from kvmkit.pci.config import CONFIG_BYTES


def test_a_function_is_found_by_both_ways_and_nothing_where_none_is(bus):
    function = bus.add(Bar(0, 0x1000, Memory()))
    assert bus.read(function, 0, 4) == bus.port_read(1, 0, 4) == 0x56781234
    assert bus.read(function, 8, 4) == bus.port_read(1, 8, 4) == 0xFF000003
    assert bus.read(function, 0x2C, 4) == 0x00020001
    assert bus.port_read(0, 0, 4) == 0x00081B36
    assert bus.port_read(0, 0xA, 2) == 0x0600
    assert bus.port_read(2, 0, 4) == 0xFFFFFFFF
    assert bus.mmio.read(pc.PCI_ECAM + (1 << 15) + (1 << 12), 4) & 0xFFFFFFFF == 0xFFFFFFFF, "function 1"
    bus.ports.write(0xCF8, 4, 0x80010000)
    assert bus.ports.read(0xCFC, 4) & 0xFFFFFFFF == 0xFFFFFFFF, "bus 1"
    bus.ports.write(0xCF8, 4, 0)
    assert bus.ports.read(0xCFC, 4) & 0xFFFFFFFF == 0xFFFFFFFF, "not enabled"


def test_the_reset_port_is_a_byte_in_the_middle_of_the_address_port(bus):
    bus.ports.write(0xCF8, 4, 0x80000800)
    bus.ports.write(0xCF9, 1, 6)
    assert bus.reset_port.written == [6]
    assert bus.ports.read(0xCF9, 1) & 0xFF == 0x5A
    assert bus.ports.read(0xCF8, 4) & 0xFFFFFFFF == 0x80000800


def test_only_the_guests_bits_change(bus):
    function = bus.add()
    bus.write(function, 0, 4, 0)
    bus.write(function, 8, 4, 0)
    bus.write(function, 0x2C, 4, 0)
    bus.write(function, COMMAND, 4, 0xFFFFFFFF)
    assert bus.read(function, 0, 4) == 0x56781234
    assert bus.read(function, 8, 4) == 0xFF000003
    assert bus.read(function, COMMAND, 2) == 0x0547
    bus.write(function, 0x3C, 1, 11)
    assert bus.read(function, 0x3C, 1) == 11


@pytest.mark.parametrize("size", [1 << 12, 1 << 16, 1 << 24])
def test_a_bar_tells_its_size(bus, size):
    function = bus.add(Bar(0, size, Memory()), Bar(2, size, Memory(), wide=True, prefetchable=True))
    for register in (0x10, 0x18, 0x1C):
        bus.write(function, register, 4, 0xFFFFFFFF)
    assert bus.read(function, 0x10, 4) == (1 << 32) - size
    assert bus.read(function, 0x1C, 4) << 32 | bus.read(function, 0x18, 4) == (1 << 64) - size + 0xC
    assert bus.read(function, BAR1, 4) == 0, "no BAR there"


def test_bars_have_a_place_from_the_start(bus):
    first = bus.add(Bar(0, 0x1000, Memory()), Bar(1, 0x100000, Memory()))
    second = bus.add(Bar(0, 0x4000, Memory(), wide=True))
    assert bus.read(first, BAR0, 4) == pc.PCI_MMIO
    assert bus.read(first, BAR1, 4) == pc.PCI_MMIO + 0x100000
    assert bus.read(second, BAR0, 4) | bus.read(second, BAR1, 4) << 32 == pc.PCI_MMIO64_SIZE | 4


def test_what_can_not_be_is_refused(bus):
    for wrong in (
        [Bar(0, 0x1800, Memory())],
        [Bar(0, 0x100, Memory())],
        [Bar(5, 0x1000, Memory(), wide=True)],
        [Bar(0, 0x1000, Memory(), wide=True), Bar(1, 0x1000, Memory())],
        [Bar(0, 1 << 28, Memory())],
    ):
        with pytest.raises(BadInput):
            bus.add(*wrong)
    for _ in range(31):
        bus.add()
    with pytest.raises(BadInput, match="slot"):
        bus.add()
    config = ConfigSpace(IDENTITY)
    for _ in range(6):
        config.add_capability(9, bytes(30))
    with pytest.raises(BadInput, match="no room"):
        config.add_capability(9, bytes(30))


def test_capabilities_are_a_list_that_ends(bus):
    function = bus.add()
    assert bus.read(function, 6, 2) & 0x10
    express = bus.capability(function, 0x10)
    assert express
    assert bus.read(function, express + 2, 2) == 0x92, "version 2, an endpoint of the root complex"
    second = function.config.add_capability(9, b"\x08abcde", b"\0\xff")
    assert bus.capability(function, 9) == second
    bus.write(function, second, 4, 0)
    bus.write(function, second + 4, 4, 0)
    assert bus.read(function, second, 4) == 0x00080009, "the byte that may change has"
    assert bus.read(function, second + 4, 4) == int.from_bytes(b"bcde", "little")


def test_those_who_watch_are_told(bus):
    function = bus.add()
    seen: list[tuple[str, int, int]] = []
    function.config.watch(
        0x50,
        4,
        before_read=lambda offset, size: seen.append(("read", offset, size)),
        after_write=lambda offset, size: seen.append(("write", offset, size)),
    )
    bus.read(function, 0x4E, 2)
    bus.read(function, 0x53, 1)
    bus.write(function, 0x54, 4, 0)
    bus.write(function, 0x4C, 8, 0)
    assert seen == [("read", 0x53, 1), ("write", 0x4C, 8)]


def test_a_saved_state_keeps_the_guests_bits_and_no_others(bus):
    function = bus.add(Bar(0, 0x1000, Memory()))
    bus.write(function, COMMAND, 2, MEMORY)
    bus.move(function, 0, pc.PCI_MMIO + 0x5000)
    saved = bytearray(function.config.state())
    saved[0] = 0xEE
    other = ConfigSpace(IDENTITY)
    other.add_bar(Bar(0, 0x1000, Memory()))
    other.restore(bytes(saved))
    assert other.get(0, 2) == IDENTITY.vendor
    assert other.command == MEMORY
    assert other.bar_address(other.bars[0]) == pc.PCI_MMIO + 0x5000
    with pytest.raises(BadInput, match="bytes"):
        other.restore(b"")


@settings(max_examples=60, deadline=None)
@given(
    st.lists(
        st.tuples(
            st.booleans(),
            st.one_of(st.integers(0, CONFIG_BYTES - 1), st.integers(0, 0x90)),
            st.sampled_from([1, 2, 4, 8]),
            st.integers(0, (1 << 64) - 1),
        ),
        max_size=60,
    )
)
def test_no_access_changes_what_is_not_the_guests(accesses):
    bus = Bus()
    try:
        function = bus.add_msix(3)
        before, writable = function.config.state(), bytes(function.config.writable)
        for write, register, size, value in accesses:
            if write:
                bus.write(function, register, size, value)
            else:
                bus.read(function, register, size)
        for old, new, mask in zip(before, function.config.state(), writable, strict=True):
            assert (old ^ new) & ~mask & 0xFF == 0
        for _, size, device in bus.mmio.describe():
            assert device is not None
            assert size
    finally:
        bus.close()
