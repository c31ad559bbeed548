"""The interrupt controllers and timers wired together, as a PC's kernel meets them."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.accel.state import VM_STATE
from kvmkit.accel.tcg.chips import Chips
from kvmkit.errors import BadInput

LAPIC, IOAPIC = 0xFEE00000, 0xFEC00000
NEVER = 2**63 - 1
LEVEL, MASKED = 0x8000, 0x10000
NAMES = ("lapic", "ioapic", "pic_master", "pic_slave", "pit")


@pytest.fixture
def chips() -> Chips:
    """PIC at vectors 0x30 and 0x38, local APIC enabled; LINT0 passes the PIC on, as after a reset."""
    pc = Chips()
    for port, base, cascade in ((0x20, 0x30, 4), (0xA0, 0x38, 2)):
        pc.port_write(port, 1, 0x11, 0)
        for value in (base, cascade, 1):
            pc.port_write(port + 1, 1, value, 0)
    pc.mmio_write(LAPIC + 0xF0, 4, 0x1FF, 0)
    return pc


def route(chips: Chips, pin: int, low: int) -> None:
    for register, value in ((0x11 + 2 * pin, 0), (0x10 + 2 * pin, low)):
        chips.mmio_write(IOAPIC, 4, register, 0)
        chips.mmio_write(IOAPIC + 0x10, 4, value, 0)


def mask_pic(chips: Chips) -> None:
    chips.mmio_write(LAPIC + 0x350, 4, 0x700 | MASKED, 0)


def eoi(chips: Chips) -> None:
    chips.mmio_write(LAPIC + 0xB0, 4, 0, 0)


def test_the_pic_reaches_the_processor_by_lint0(chips: Chips) -> None:
    assert not chips.interrupt_pending()
    assert chips.acknowledge() == -1
    chips.set_irq(4, True)
    assert chips.interrupt_pending()
    assert chips.acknowledge() == 0x34
    chips.set_irq(4, False)
    chips.port_write(0x20, 1, 0x20, 0)
    mask_pic(chips)
    chips.set_irq(4, True)
    assert not chips.interrupt_pending()


def test_the_pic_reaches_the_processor_without_an_apic(chips: Chips) -> None:
    mask_pic(chips)
    assert chips.write_msr(0x1B, 0xFEE00100, 0)
    chips.set_irq(4, True)
    assert chips.acknowledge() == 0x34


def test_the_pic_reaches_the_processor_by_the_ioapic(chips: Chips) -> None:
    mask_pic(chips)
    route(chips, 0, 0x700)
    chips.set_irq(4, True)
    assert chips.acknowledge() == 0x34


def test_the_pic_as_an_interrupt_of_lint0(chips: Chips) -> None:
    """Linux falls back to this when the IOAPIC's timer pin does not work."""
    chips.mmio_write(LAPIC + 0x350, 4, 0x50, 0)
    chips.set_irq(0, True)
    assert chips.acknowledge() == 0x50
    assert chips.acknowledge() == -1


def test_a_gsi_reaches_both_controllers(chips: Chips) -> None:
    route(chips, 4, 0x44)
    chips.set_irq(4, True)
    assert chips.acknowledge() == 0x34
    assert chips.acknowledge() == 0x44


def test_gsi_0_is_pin_2_and_gsi_2_is_none(chips: Chips) -> None:
    mask_pic(chips)
    route(chips, 0, 0x40)
    route(chips, 2, 0x42)
    chips.set_irq(2, True)
    assert chips.acknowledge() == -1
    chips.set_irq(0, True)
    assert chips.acknowledge() == 0x42
    eoi(chips)
    assert chips.acknowledge() == -1


def test_upper_gsis_are_the_ioapics_alone(chips: Chips) -> None:
    mask_pic(chips)
    route(chips, 23, 0x57 | LEVEL)
    chips.set_irq(23, True)
    chips.set_irq(24, True)
    chips.set_irq(2**32 - 1, True)
    assert chips.acknowledge() == 0x57
    eoi(chips)
    assert chips.acknowledge() == 0x57
    chips.set_irq(23, False)
    eoi(chips)
    assert chips.acknowledge() == -1
    assert chips.take_eoi() == 1 << 23
    assert chips.take_eoi() == 0


def test_eoi_by_x2apic(chips: Chips) -> None:
    mask_pic(chips)
    assert chips.write_msr(0x1B, 0xFEE00D00, 0)
    route(chips, 10, 0x4A | LEVEL)
    chips.set_irq(10, True)
    assert chips.acknowledge() == 0x4A
    assert chips.write_msr(0x80B, 0, 0)
    assert chips.acknowledge() == 0x4A
    assert not chips.write_msr(0x80B, 1, 0)


def test_resample_by_the_ioapic(chips: Chips) -> None:
    mask_pic(chips)
    chips.set_resample(1 << 10 | 1)
    route(chips, 10, 0x4A | LEVEL)
    route(chips, 2, 0x42 | LEVEL)
    for gsi, vector in ((10, 0x4A), (0, 0x42)):
        chips.set_irq(gsi, True)
        assert chips.acknowledge() == vector
        eoi(chips)
        assert chips.take_eoi() == 1 << gsi
        assert chips.acknowledge() == -1


def test_resample_by_the_pic(chips: Chips) -> None:
    chips.set_resample(1 << 10)
    chips.port_write(0x4D1, 1, 4, 0)
    chips.set_irq(10, True)
    assert chips.acknowledge() == 0x3A
    chips.port_write(0xA0, 1, 0x20, 0)
    chips.port_write(0x20, 1, 0x20, 0)
    assert chips.take_eoi() == 1 << 10 | 1 << 2
    assert not chips.interrupt_pending()


def test_a_level_raised_before_the_apic_is_enabled(chips: Chips) -> None:
    mask_pic(chips)
    chips.mmio_write(LAPIC + 0xF0, 4, 0xFF, 0)
    route(chips, 10, 0x4A | LEVEL)
    chips.set_irq(10, True)
    assert not chips.interrupt_pending()
    chips.mmio_write(LAPIC + 0xF0, 4, 0x1FF, 0)
    assert chips.acknowledge() == 0x4A


def test_msi(chips: Chips) -> None:
    assert chips.signal_msi(0xFEE00000, 0x41)
    assert chips.acknowledge() == 0x41
    assert chips.signal_msi(0xFEE00000, 0x0141)  # lowest priority; not accepted twice: in service
    assert not chips.interrupt_pending()
    assert chips.signal_msi(0xFEEFF000, 0x61)
    assert chips.acknowledge() == 0x61
    assert not chips.signal_msi(0xFEE01000, 0x71)
    assert not chips.signal_msi(0xFED00000, 0x71)
    assert not chips.signal_msi(0x1_FEE00000, 0x71)
    assert not chips.signal_msi(0xFEE00000, 0x01)
    assert not chips.interrupt_pending()
    assert chips.signal_msi(0xFEE00000, 0x400)
    assert chips.lapic.nmi_pending


def test_logical_msi(chips: Chips) -> None:
    chips.mmio_write(LAPIC + 0xD0, 4, 0x01000000, 0)
    assert chips.signal_msi(0xFEE01004, 0x41)
    assert not chips.signal_msi(0xFEE02004, 0x41)
    assert chips.signal_msi(0xFEE0300C, 0x42)


def test_pit_interrupts(chips: Chips) -> None:
    for port, value in ((0x43, 0x34), (0x40, 0xA9), (0x40, 0x04)):  # 1193: a millisecond
        chips.port_write(port, 1, value, 0)
    assert 999_000 < chips.deadline() < 1_000_000
    chips.poll(chips.deadline() - 1)
    assert not chips.interrupt_pending()
    chips.poll(chips.deadline())
    assert chips.acknowledge() == 0x30
    chips.port_write(0x20, 1, 0x20, 1_000_000)
    assert not chips.interrupt_pending()
    route(chips, 2, 0x42)
    mask_pic(chips)
    chips.poll(chips.deadline())
    assert chips.acknowledge() == 0x42


def test_an_edge_is_not_lost_when_the_pit_is_programmed_anew(chips: Chips) -> None:
    for port, value, now in ((0x43, 0x30, 0), (0x40, 10, 0), (0x40, 0, 0), (0x43, 0x30, 1_000_000)):
        chips.port_write(port, 1, value, now)
    assert chips.acknowledge() == 0x30


def test_the_earlier_deadline_counts(chips: Chips) -> None:
    chips.mmio_write(LAPIC + 0x320, 4, 0x40, 0)
    chips.mmio_write(LAPIC + 0x3E0, 4, 0xB, 0)
    chips.mmio_write(LAPIC + 0x380, 4, 50_000, 0)
    assert chips.deadline() == 50_000
    for port, value in ((0x43, 0x30), (0x40, 10), (0x40, 0)):
        chips.port_write(port, 1, value, 0)
    assert chips.deadline() < 10_000
    chips.poll(60_000)
    assert {chips.acknowledge(), chips.acknowledge()} == {0x30, 0x40}
    assert chips.deadline() == NEVER


def test_ports(chips: Chips) -> None:
    assert chips.read_port(0x60, 1, 0) is None
    assert not chips.port_write(0x80, 1, 0, 0)
    assert chips.port_write(0x20, 2, 0xAB20, 0)  # a word is two ports
    assert chips.read_port(0x21, 1, 0) == 0xAB
    assert chips.read_port(0x21, 2, 0) == 0xFFAB
    assert chips.read_port(0x21, 4, 0) == 0xFFFFFFAB


def test_memory(chips: Chips) -> None:
    assert chips.read_mmio(LAPIC + 0x30, 4, 0) == 0x50014
    assert chips.read_mmio(LAPIC + 0x31, 1, 0) == 0x00
    assert chips.read_mmio(LAPIC + 0x32, 2, 0) == 5
    assert chips.read_mmio(LAPIC + 0x34, 4, 0) == 0
    assert chips.read_mmio(LAPIC + 0xFFC, 8, 0) == 0
    assert chips.read_mmio(LAPIC + 0x1000, 4, 0) is None
    assert chips.read_mmio(LAPIC - 4, 4, 0) is None
    assert chips.read_mmio(IOAPIC + 0x100, 4, 0) is None
    assert chips.read_mmio(0, 4, 0) is None
    chips.mmio_write(IOAPIC, 1, 0x1FFFFFF01, 0)
    assert chips.read_mmio(IOAPIC, 8, 0) == 1
    assert chips.read_mmio(IOAPIC + 0x10, 4, 0) == 0x170011
    assert chips.mmio_write(LAPIC + 0x80, 1, 0xFF, 0)
    assert chips.read_mmio(LAPIC + 0x80, 4, 0) == 0
    assert not chips.mmio_write(0x1000, 4, 0, 0)


def test_the_lapics_page_moves_and_goes(chips: Chips) -> None:
    assert chips.write_msr(0x1B, 0xE0000900, 0)
    assert chips.read_mmio(LAPIC + 0x30, 4, 0) is None
    assert chips.read_mmio(0xE0000030, 4, 0) == 0x50014
    assert chips.write_msr(0x1B, 0xFEE00D00, 0)
    assert chips.read_mmio(LAPIC + 0x30, 4, 0) is None
    assert chips.write_msr(0x1B, 0xFEE00100, 0)
    assert not chips.mmio_write(LAPIC + 0x80, 4, 0, 0)


def test_reset(chips: Chips) -> None:
    route(chips, 10, 0x4A | LEVEL)
    chips.set_irq(4, True)
    chips.signal_msi(0xFEE00000, 0x41)
    chips.reset()
    assert not chips.interrupt_pending()
    assert chips.deadline() == NEVER
    fresh = Chips()
    assert [chips.get(name, 0) for name in NAMES] == [fresh.get(name, 0) for name in NAMES]


def test_state_sizes(chips: Chips) -> None:
    for name in NAMES[1:]:
        assert len(chips.get(name)) == VM_STATE[name]
    with pytest.raises(KeyError):
        chips.get("hpet")
    with pytest.raises(KeyError):
        chips.set("hpet", b"")


@pytest.mark.parametrize("name", NAMES)
def test_a_wrong_size_is_refused(chips: Chips, name: str) -> None:
    before = [chips.get(each, 0) for each in NAMES]
    for data in (b"", chips.get(name, 0) + b"\0", chips.get(name, 0)[:-1]):
        with pytest.raises(BadInput, match="bytes"):
            chips.set(name, data, 0)
    assert [chips.get(each, 0) for each in NAMES] == before


def test_another_chips_state_is_refused(chips: Chips) -> None:
    with pytest.raises(BadInput, match="controller 1"):
        chips.set("pic_master", chips.get("pic_slave"))


WHERE = st.one_of(
    st.sampled_from([0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1, 0x40, 0x42, 0x43, 0x61]),
    st.integers(0, 0x3F).map(lambda n: LAPIC + 16 * n),
    st.sampled_from([IOAPIC, IOAPIC + 0x10, LAPIC + 0xF0, LAPIC + 0xB0]),
    st.integers(0, 30),
    st.sampled_from([0x1B, 0x6E0, 0x80B, 0x80F, 0x830, 0x83F]),
)
VALUE = st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 0x1FF), st.integers(0x10, 0x3F))
POKES = st.lists(
    st.tuples(
        st.sampled_from(["io", "io", "irq", "msi", "take", "msr"]), WHERE, st.sampled_from([1, 2, 3, 4, 8]), VALUE
    ),
    max_size=80,
)


def poke(chips: Chips, pokes: list[tuple[str, int, int, int]]) -> int:
    now = 0
    for kind, where, size, value in pokes:
        now += value % 100_003
        if kind == "irq":
            chips.set_irq(where & 0xFFFFFFFF, bool(value & 1))
        elif kind == "msi":
            chips.signal_msi(where, value & 0xFFFFFFFF)
        elif kind == "take":
            pending = chips.interrupt_pending()
            assert (chips.acknowledge() >= 0) == pending
        elif kind == "msr":
            chips.write_msr(where & 0xFFFFFFFF, value, now)
        elif where < 0x10000:
            chips.port_write(where, size, value & 0xFFFFFFFF, now)
            chips.read_port(where, size, now)
        else:
            chips.mmio_write(where, size, value, now)
            chips.read_mmio(where, size, now)
        chips.poll(now)
        assert chips.deadline() > now
    return now


@given(POKES)
def test_any_poke_leaves_a_state_that_restores_to_itself(pokes: list[tuple[str, int, int, int]]) -> None:
    chips = Chips()
    now = poke(chips, pokes)
    saved = [(name, chips.get(name, now)) for name in NAMES]
    other = Chips()
    assert other.lapic.restore_base(chips.lapic.apic_base)
    for name, data in saved:
        other.set(name, data, now)
    assert [(name, other.get(name, now)) for name in NAMES] == saved
    assert other.interrupt_pending() == chips.interrupt_pending()
