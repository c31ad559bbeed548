"""The I/O APIC by the 82093AA data sheet, with a real local APIC behind it."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.accel.tcg.ioapic import Ioapic
from kvmkit.accel.tcg.lapic import Lapic
from kvmkit.errors import BadInput

SVR, EOI = 0xF0, 0xB0
LEVEL, MASKED, REMOTE_IRR = 0x8000, 0x10000, 0x4000


@pytest.fixture
def lapic() -> Lapic:
    apic = Lapic()
    apic.write(SVR, 0x1FF, 0)
    return apic


@pytest.fixture
def ioapic(lapic: Lapic) -> Ioapic:
    return Ioapic(lapic)


def put(ioapic: Ioapic, register: int, value: int) -> None:
    ioapic.write(0, register)
    ioapic.write(0x10, value)


def see(ioapic: Ioapic, register: int) -> int:
    ioapic.write(0, register)
    return ioapic.read(0x10)


def route(ioapic: Ioapic, pin: int, low: int, destination: int = 0) -> None:
    put(ioapic, 0x11 + 2 * pin, destination << 24)
    put(ioapic, 0x10 + 2 * pin, low)


def test_registers(ioapic: Ioapic) -> None:
    assert see(ioapic, 1) == 0x170011
    put(ioapic, 0, 0xFFFFFFFF)
    assert see(ioapic, 0) == 0x0F000000
    assert see(ioapic, 2) == 0x0F000000
    put(ioapic, 1, 0)
    assert see(ioapic, 1) == 0x170011
    assert see(ioapic, 0x40) == 0
    assert ioapic.read(0) == 0x40
    assert all(see(ioapic, 0x10 + 2 * pin) == MASKED for pin in range(24))
    put(ioapic, 0x3E, 0xFFFFFFFF)
    put(ioapic, 0x3F, 0xFFFFFFFF)
    assert see(ioapic, 0x3E) == 0x1AFFF  # neither delivery status nor remote IRR can be written
    assert see(ioapic, 0x3F) == 0xFF000000


def test_an_edge_is_sent_once_per_rise(ioapic: Ioapic, lapic: Lapic) -> None:
    route(ioapic, 4, 0x34)
    ioapic.set_line(4, True)
    assert lapic.acknowledge() == 0x34
    assert lapic.write(EOI, 0, 0) == -1
    ioapic.set_line(4, True)
    assert lapic.pending() == -1
    ioapic.set_line(4, False)
    ioapic.set_line(4, True)
    assert lapic.pending() == 0x34


def test_an_edge_at_a_masked_pin_is_lost(ioapic: Ioapic, lapic: Lapic) -> None:
    route(ioapic, 4, 0x34 | MASKED)
    ioapic.set_line(4, True)
    route(ioapic, 4, 0x34)
    assert lapic.pending() == -1


def test_a_level_is_sent_again_at_eoi_while_it_is_up(ioapic: Ioapic, lapic: Lapic) -> None:
    route(ioapic, 10, 0x3A | LEVEL)
    ioapic.set_line(10, True)
    assert see(ioapic, 0x24) & REMOTE_IRR
    assert lapic.acknowledge() == 0x3A
    ioapic.set_line(10, True)
    assert lapic.read(0x210, 0) == 0  # not before the EOI
    ended = lapic.write(EOI, 0, 0)
    assert ended == 0x3A
    assert ioapic.eoi(ended) == 1 << 10
    assert lapic.acknowledge() == 0x3A
    ioapic.set_line(10, False)
    assert ioapic.eoi(lapic.write(EOI, 0, 0)) == 1 << 10
    assert lapic.pending() == -1
    assert not see(ioapic, 0x24) & REMOTE_IRR


def test_a_masked_level_is_sent_when_unmasked(ioapic: Ioapic, lapic: Lapic) -> None:
    ioapic.set_line(10, True)
    route(ioapic, 10, 0x3A | LEVEL | MASKED)
    assert lapic.pending() == -1
    route(ioapic, 10, 0x3A | LEVEL)
    assert lapic.pending() == 0x3A


def test_eoi_is_for_every_pin_of_the_vector(ioapic: Ioapic, lapic: Lapic) -> None:
    for pin in (10, 11):
        route(ioapic, pin, 0x3A | LEVEL)
        ioapic.set_line(pin, True)
    lapic.acknowledge()
    assert ioapic.eoi(0x3B) == 0
    assert ioapic.eoi(0x3A) == 3 << 10


def test_a_resampled_line_falls_at_eoi(ioapic: Ioapic, lapic: Lapic) -> None:
    ioapic.resample = 1 << 10
    route(ioapic, 10, 0x3A | LEVEL)
    ioapic.set_line(10, True)
    lapic.acknowledge()
    assert ioapic.eoi(lapic.write(EOI, 0, 0)) == 1 << 10
    assert lapic.pending() == -1
    assert ioapic.lines == 0


def test_edge_mode_ends_a_level(ioapic: Ioapic, lapic: Lapic) -> None:
    """How Linux ends an interrupt of an IOAPIC that has no EOI register: masked to edge, and back."""
    route(ioapic, 10, 0x3A | LEVEL)
    ioapic.set_line(10, True)
    put(ioapic, 0x24, 0x3A | MASKED)
    assert not see(ioapic, 0x24) & REMOTE_IRR
    put(ioapic, 0x24, 0x3A | LEVEL)
    assert see(ioapic, 0x24) & REMOTE_IRR


def test_nmi_is_an_edge_whatever_its_entry_says(ioapic: Ioapic, lapic: Lapic) -> None:
    route(ioapic, 5, 0x400 | LEVEL)
    ioapic.set_line(5, True)
    assert lapic.nmi_pending
    lapic.nmi_pending = False
    ioapic.set_line(5, True)
    route(ioapic, 5, 0x400 | LEVEL)
    assert not lapic.nmi_pending
    assert not see(ioapic, 0x1A) & REMOTE_IRR


@pytest.mark.parametrize("mode", [0x200, 0x300, 0x500, 0x600, 0x700])
def test_other_modes_interrupt_nobody(ioapic: Ioapic, lapic: Lapic, mode: int) -> None:
    route(ioapic, 5, mode | 0x40 | LEVEL)
    ioapic.set_line(5, True)
    assert lapic.pending() == -1
    assert not lapic.nmi_pending


def test_destinations(ioapic: Ioapic, lapic: Lapic) -> None:
    lapic.write(0xD0, 0x01000000, 0)
    route(ioapic, 5, 0x40, destination=1)
    ioapic.set_line(5, True)
    assert lapic.pending() == -1
    route(ioapic, 6, 0x940, destination=1)  # logical, lowest priority
    ioapic.set_line(6, True)
    assert lapic.pending() == 0x40


def test_a_level_that_came_too_early_is_sent_again(ioapic: Ioapic, lapic: Lapic) -> None:
    lapic.write(SVR, 0xFF, 0)
    route(ioapic, 10, 0x3A | LEVEL)
    ioapic.set_line(10, True)
    assert not see(ioapic, 0x24) & REMOTE_IRR
    lapic.write(SVR, 0x1FF, 0)
    ioapic.retry()
    assert lapic.pending() == 0x3A


def test_lines_that_do_not_exist(ioapic: Ioapic, lapic: Lapic) -> None:
    ioapic.set_line(24, True)
    ioapic.set_line(4_000_000_000, True)
    assert ioapic.lines == 0


def test_state_is_kvms(ioapic: Ioapic) -> None:
    put(ioapic, 0, 0x05000000)
    route(ioapic, 10, 0x3A | LEVEL, destination=7)
    route(ioapic, 3, 0x33 | MASKED)
    ioapic.set_line(10, True)
    ioapic.set_line(3, True)
    base, selected, number, irr, pad, *entries = struct.unpack("<Q4I24Q", ioapic.state())
    assert (base, selected, number, irr, pad) == (0xFEC00000, 0x16, 5, 1 << 10, 0)
    assert entries[10] == 7 << 56 | LEVEL | 0x3A
    assert entries[3] == MASKED | 0x33


def test_restored_lines_are_up(ioapic: Ioapic, lapic: Lapic) -> None:
    route(ioapic, 10, 0x3A | LEVEL)
    ioapic.set_line(10, True)
    lapic.acknowledge()
    other = Ioapic(lapic)
    other.restore(ioapic.state())
    assert lapic.pending() == -1  # it has not been ended
    other.eoi(lapic.write(EOI, 0, 0))
    assert lapic.pending() == 0x3A


def test_restoring_what_is_no_state_is_refused(ioapic: Ioapic) -> None:
    with pytest.raises(BadInput, match="216"):
        ioapic.restore(b"")


POKES = st.lists(
    st.tuples(st.sampled_from(["put", "line", "take"]), st.integers(0, 0x41), st.integers(0, 2**32 - 1)), max_size=60
)


def poke(ioapic: Ioapic, lapic: Lapic, pokes: list[tuple[str, int, int]]) -> None:
    for kind, where, value in pokes:
        if kind == "put":
            put(ioapic, where, value)
            see(ioapic, where)
        elif kind == "line":
            ioapic.set_line(where, bool(value & 1))
        elif lapic.pending() >= 0:
            lapic.acknowledge()
            ended = lapic.write(EOI, 0, 0)
            if ended >= 0:
                ioapic.eoi(ended)


@given(POKES)
def test_any_poke_leaves_a_state_that_restores_to_itself(pokes: list[tuple[str, int, int]]) -> None:
    lapic = Lapic()
    lapic.write(SVR, 0x1FF, 0)
    ioapic = Ioapic(lapic)
    poke(ioapic, lapic, pokes)
    state = ioapic.state()
    pending = lapic.state(0)
    ioapic.restore(state)
    assert ioapic.state() == state
    assert lapic.state(0) == pending  # and sends nothing twice


@given(st.binary(min_size=216, max_size=216), POKES)
def test_any_bytes_restore(data: bytes, pokes: list[tuple[str, int, int]]) -> None:
    lapic = Lapic()
    lapic.write(SVR, 0x1FF, 0)
    ioapic = Ioapic(lapic)
    ioapic.restore(data)
    once = ioapic.state()
    ioapic.restore(once)
    assert ioapic.state() == once
    poke(ioapic, lapic, pokes)
