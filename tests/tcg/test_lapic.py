"""The local APIC by the Intel SDM, volume 3."""

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.accel.tcg.lapic import Lapic
from kvmkit.errors import BadInput

NEVER = 2**63 - 1
ID, VERSION, TPR, PPR, EOI, LDR, DFR, SVR = 0x20, 0x30, 0x80, 0xA0, 0xB0, 0xD0, 0xE0, 0xF0
ISR, TMR, IRR, ESR, ICR, ICR_HIGH = 0x100, 0x180, 0x200, 0x280, 0x300, 0x310
LVT_TIMER, LVT_LINT0, LVT_LINT1, LVT_ERROR = 0x320, 0x350, 0x360, 0x370
INITIAL, CURRENT, DIVIDE = 0x380, 0x390, 0x3E0
BY_ONE = 0xB
PERIODIC, DEADLINE, MASKED = 0x20000, 0x40000, 0x10000
BASE, X2APIC = 0xFEE00900, 0xFEE00D00


@pytest.fixture
def lapic() -> Lapic:
    """A software-enabled APIC, its timer undivided."""
    apic = Lapic()
    apic.write(SVR, 0x1FF, 0)
    apic.write(DIVIDE, BY_ONE, 0)
    return apic


def x2(apic: Lapic) -> Lapic:
    assert apic.wrmsr(0x1B, X2APIC, 0) == -1
    return apic


def test_reset_values() -> None:
    apic = Lapic()
    assert apic.apic_base == BASE
    assert apic.read(VERSION, 0) == 0x50014
    assert apic.read(SVR, 0) == 0xFF
    assert apic.read(DFR, 0) == 0xFFFFFFFF
    assert all(apic.read(entry, 0) == MASKED for entry in (0x320, 0x330, 0x340, 0x360, 0x370))
    assert apic.accepts_extint()
    assert apic.pending() == -1
    assert apic.deadline() == NEVER


def test_nothing_is_accepted_while_software_disabled() -> None:
    apic = Lapic()
    assert not apic.accept(0x40, False)
    assert apic.rejected
    apic.write(SVR, 0x1FF, 0)
    assert apic.accept(0x40, False)
    assert apic.pending() == 0x40


def test_disabling_masks_the_local_vectors(lapic: Lapic) -> None:
    lapic.write(LVT_TIMER, 0x40, 0)
    lapic.write(SVR, 0xFF, 0)
    assert lapic.read(LVT_TIMER, 0) == 0x40 | MASKED
    lapic.write(LVT_TIMER, 0x40, 0)
    assert lapic.read(LVT_TIMER, 0) == 0x40 | MASKED


def test_priorities_and_nesting(lapic: Lapic) -> None:
    for vector in (0x31, 0x55, 0x52):
        lapic.accept(vector, False)
    assert lapic.acknowledge() == 0x55
    assert lapic.read(PPR, 0) == 0x50
    assert lapic.pending() == -1  # 0x52 is of the class in service
    lapic.accept(0x61, False)
    assert lapic.acknowledge() == 0x61
    assert lapic.read(ISR + 0x20, 0) == 1 << 0x15
    assert lapic.read(ISR + 0x30, 0) == 1 << 1
    lapic.write(EOI, 0, 0)
    assert lapic.read(PPR, 0) == 0x50
    assert lapic.pending() == -1
    lapic.write(EOI, 0, 0)
    assert lapic.acknowledge() == 0x52
    lapic.write(EOI, 0, 0)
    assert lapic.acknowledge() == 0x31
    lapic.write(EOI, 0, 0)
    assert lapic.read(PPR, 0) == 0
    assert lapic.write(EOI, 0, 0) == -1


def test_a_second_message_merges_with_the_first(lapic: Lapic) -> None:
    lapic.accept(0x40, False)
    lapic.accept(0x40, False)
    assert lapic.acknowledge() == 0x40
    lapic.accept(0x40, False)  # one in service and one requested can stand together
    assert lapic.pending() == -1
    lapic.write(EOI, 0, 0)
    assert lapic.acknowledge() == 0x40
    lapic.write(EOI, 0, 0)
    assert lapic.pending() == -1


def test_task_priority_masks_its_class_and_below(lapic: Lapic) -> None:
    lapic.accept(0x5F, False)
    lapic.set_tpr(5)
    assert lapic.read(TPR, 0) == 0x50
    assert lapic.pending() == -1
    lapic.write(TPR, 0x4F, 0)
    assert lapic.tpr() == 4
    assert lapic.pending() == 0x5F
    assert lapic.read(PPR, 0) == 0x4F


def test_acknowledge_with_nothing_pending_is_spurious(lapic: Lapic) -> None:
    lapic.write(SVR, 0x1EF, 0)
    assert lapic.acknowledge() == 0xEF
    assert lapic.read(ISR + 0x70, 0) == 0


def test_only_a_level_is_told_at_eoi(lapic: Lapic) -> None:
    lapic.accept(0x41, True)
    assert lapic.read(TMR + 0x20, 0) == 2
    lapic.acknowledge()
    assert lapic.write(EOI, 0, 0) == 0x41
    lapic.accept(0x41, False)
    assert lapic.read(TMR + 0x20, 0) == 0
    lapic.acknowledge()
    assert lapic.write(EOI, 0, 0) == -1


def test_one_shot_timer(lapic: Lapic) -> None:
    lapic.write(LVT_TIMER, 0x40, 100)
    lapic.write(INITIAL, 1000, 100)
    assert lapic.deadline() == 1100
    assert lapic.read(CURRENT, 400) == 700
    lapic.poll(1099)
    assert lapic.pending() == -1
    lapic.poll(1100)
    assert lapic.acknowledge() == 0x40
    assert lapic.read(CURRENT, 1100) == 0
    assert lapic.read(INITIAL, 1100) == 1000
    assert lapic.deadline() == NEVER


@pytest.mark.parametrize(("value", "divide"), [(0, 2), (1, 4), (2, 8), (3, 16), (8, 32), (9, 64), (0xA, 128), (0xB, 1)])
def test_timer_divider(lapic: Lapic, value: int, divide: int) -> None:
    lapic.write(LVT_TIMER, 0x40, 0)
    lapic.write(DIVIDE, value, 0)
    lapic.write(INITIAL, 1000, 0)
    assert lapic.deadline() == 1000 * divide


def test_changing_the_divider_keeps_the_count(lapic: Lapic) -> None:
    lapic.write(LVT_TIMER, 0x40, 0)
    lapic.write(INITIAL, 1000, 0)
    lapic.write(DIVIDE, 0, 400)
    assert lapic.read(CURRENT, 400) == 600
    assert lapic.deadline() == 400 + 1200


def test_periodic_timer_coalesces_what_was_missed(lapic: Lapic) -> None:
    lapic.write(LVT_TIMER, 0x40 | PERIODIC, 0)
    lapic.write(INITIAL, 1_000_000, 0)
    lapic.poll(1_000_000)
    assert lapic.acknowledge() == 0x40
    lapic.write(EOI, 0, 0)
    assert lapic.deadline() == 2_000_000
    lapic.poll(7_400_000)
    assert lapic.acknowledge() == 0x40
    lapic.write(EOI, 0, 0)
    assert lapic.pending() == -1
    assert lapic.deadline() == 8_000_000  # still on the grid
    assert lapic.read(CURRENT, 7_400_000) == 600_000


def test_a_tiny_period_is_stretched(lapic: Lapic) -> None:
    lapic.write(LVT_TIMER, 0x40 | PERIODIC, 0)
    lapic.write(INITIAL, 1, 0)
    fired = now = 0
    while now < 10_000_000:
        now = lapic.deadline()
        lapic.poll(now)
        fired += 1
    assert fired <= 201
    assert lapic.read(CURRENT, now) == 1


def test_a_masked_timer_wants_no_poll_and_loses_its_ticks(lapic: Lapic) -> None:
    lapic.write(LVT_TIMER, 0x40 | PERIODIC | MASKED, 0)
    lapic.write(INITIAL, 1_000_000, 0)
    assert lapic.deadline() == NEVER
    lapic.write(LVT_TIMER, 0x40 | PERIODIC, 3_500_000)
    assert lapic.pending() == -1
    assert lapic.deadline() == 4_000_000


def test_between_one_shot_and_periodic_the_count_goes_on(lapic: Lapic) -> None:
    lapic.write(LVT_TIMER, 0x40, 0)
    lapic.write(INITIAL, 1_000_000, 0)
    lapic.write(LVT_TIMER, 0x40 | PERIODIC, 600_000)
    assert lapic.read(CURRENT, 600_000) == 400_000
    lapic.poll(1_000_000)
    assert lapic.read(CURRENT, 1_000_001) == 999_999
    lapic.write(LVT_TIMER, 0x40, 1_700_000)
    assert lapic.read(CURRENT, 1_700_000) == 300_000
    lapic.poll(2_000_000)
    assert lapic.read(CURRENT, 2_000_000) == 0
    lapic.write(LVT_TIMER, 0x40 | PERIODIC, 2_000_001)
    assert lapic.read(CURRENT, 2_000_001) == 0
    assert lapic.deadline() == NEVER


def test_tsc_deadline(lapic: Lapic) -> None:
    lapic.tsc_khz = 3_000_000
    lapic.set_tsc(30_000, 1000)
    assert lapic.wrmsr(0x6E0, 60_000, 1000) == -1
    assert lapic.rdmsr(0x6E0, 1000) == 0  # without effect outside its mode
    lapic.write(LVT_TIMER, 0x40 | DEADLINE, 1000)
    lapic.write(INITIAL, 5, 1000)
    assert lapic.deadline() == NEVER
    lapic.wrmsr(0x6E0, 60_001, 1000)
    assert lapic.rdmsr(0x6E0, 1000) == 60_001
    assert lapic.deadline() == 1000 + 10_001  # rounded up: never early by the guest's clock
    lapic.poll(11_000)
    assert lapic.pending() == -1
    lapic.poll(11_001)
    assert lapic.acknowledge() == 0x40
    assert lapic.rdmsr(0x6E0, 11_001) == 0
    assert lapic.read(CURRENT, 11_001) == 0


def test_tsc_deadline_in_the_past_fires_at_once_and_zero_disarms(lapic: Lapic) -> None:
    lapic.tsc_khz = 1_000_000
    lapic.set_tsc(500, 500)
    lapic.write(LVT_TIMER, 0x40 | DEADLINE, 500)
    lapic.wrmsr(0x6E0, 499, 500)
    assert lapic.pending() == 0x40
    lapic.acknowledge()
    lapic.wrmsr(0x6E0, 900, 500)
    lapic.wrmsr(0x6E0, 0, 500)
    assert lapic.deadline() == NEVER
    lapic.wrmsr(0x6E0, 2**64 - 1, 500)
    assert lapic.deadline() == NEVER
    lapic.wrmsr(0x6E0, 900, 500)
    lapic.write(LVT_TIMER, 0x40, 500)  # leaving the mode disarms
    lapic.write(LVT_TIMER, 0x40 | DEADLINE, 500)
    assert lapic.deadline() == NEVER


def test_a_later_tsc_moves_the_deadline(lapic: Lapic) -> None:
    lapic.tsc_khz = 1_000_000
    lapic.set_tsc(0, 0)
    lapic.write(LVT_TIMER, 0x40 | DEADLINE, 0)
    lapic.wrmsr(0x6E0, 10_000, 0)
    lapic.set_tsc(9000, 100)  # the guest wrote its TSC
    assert lapic.deadline() == 1100


@pytest.mark.parametrize("command", [0x40, 0x40040, 0x80040, 0x140])
def test_self_interrupts(lapic: Lapic, command: int) -> None:
    lapic.write(ICR_HIGH, 0, 0)
    lapic.write(ICR, command, 0)
    assert lapic.acknowledge() == 0x40


@pytest.mark.parametrize("command", [0xC0040, 0x4500, 0x4610, 0x40500, 0x200])
def test_messages_for_others_or_of_no_effect(lapic: Lapic, command: int) -> None:
    lapic.write(ICR, command, 0)
    assert lapic.pending() == -1
    assert not lapic.nmi_pending


def test_interrupt_for_another_apic(lapic: Lapic) -> None:
    lapic.write(ICR_HIGH, 1 << 24, 0)
    lapic.write(ICR, 0x40, 0)
    assert lapic.pending() == -1


def test_nmi_to_self(lapic: Lapic) -> None:
    lapic.write(ICR, 0x400, 0)
    assert lapic.nmi_pending
    lapic.nmi_pending = False
    assert lapic.pending() == -1


def test_logical_destinations(lapic: Lapic) -> None:
    lapic.write(LDR, 0x04000000, 0)
    assert lapic.matches(0x0C, True)
    assert not lapic.matches(0x08, True)
    assert lapic.matches(0xFF, True)
    assert lapic.matches(0xFF, False)
    assert lapic.matches(0, False)
    lapic.write(DFR, 0x0FFFFFFF, 0)
    lapic.write(LDR, 0x23000000, 0)
    assert lapic.matches(0x22, True)
    assert not lapic.matches(0x12, True)
    assert not lapic.matches(0x2C, True)


def test_errors_show_after_a_write_and_interrupt(lapic: Lapic) -> None:
    lapic.write(LVT_ERROR, 0x44, 0)
    lapic.write(ICR, 0x4000F, 0)
    assert lapic.read(ESR, 0) == 0
    lapic.write(ESR, 0, 0)
    assert lapic.read(ESR, 0) == 0x20
    assert lapic.acknowledge() == 0x44
    lapic.accept(3, False)
    lapic.read(0x40, 0)
    lapic.write(ESR, 0, 0)
    assert lapic.read(ESR, 0) == 0x40 | 0x80
    lapic.write(ESR, 0, 0)
    assert lapic.read(ESR, 0) == 0


def test_an_error_vector_that_is_illegal_ends(lapic: Lapic) -> None:
    lapic.write(LVT_ERROR, 0x02, 0)
    lapic.accept(3, False)
    assert lapic.pending() == -1


def test_lint_pins(lapic: Lapic) -> None:
    lapic.write(LVT_LINT0, 0x60, 0)
    lapic.write(LVT_LINT1, 0x400, 0)
    assert not lapic.accepts_extint()
    lapic.lint(0)
    assert lapic.acknowledge() == 0x60
    lapic.lint(1)
    assert lapic.nmi_pending
    lapic.write(LVT_LINT0, 0x700, 0)
    assert lapic.accepts_extint()
    lapic.write(LVT_LINT0, 0x700 | MASKED, 0)
    assert not lapic.accepts_extint()


@pytest.mark.parametrize("value", [BASE | 1, BASE | 1 << 9, BASE | 1 << 40, 0xFEE00500, X2APIC & ~0x800])
def test_base_that_is_refused(value: int) -> None:
    apic = Lapic()
    assert apic.wrmsr(0x1B, value, 0) is None
    assert apic.rdmsr(0x1B, 0) == BASE


def test_steps_between_modes() -> None:
    apic = x2(Lapic())
    assert apic.wrmsr(0x1B, BASE, 0) is None  # x2APIC to xAPIC only by way of disabled
    assert apic.wrmsr(0x1B, BASE & ~0x800, 0) == -1
    assert apic.accepts_extint()
    assert apic.wrmsr(0x1B, X2APIC, 0) is None
    assert apic.wrmsr(0x1B, BASE, 0) == -1
    assert not apic.x2apic
    apic.x2apic_allowed = False
    assert apic.wrmsr(0x1B, X2APIC, 0) is None


def test_disabling_forgets_what_was_set(lapic: Lapic) -> None:
    lapic.accept(0x40, False)
    lapic.wrmsr(0x1B, 0xFEE00100, 0)
    assert lapic.pending() == -1
    assert not lapic.matches(0, False)
    lapic.wrmsr(0x1B, BASE, 0)
    assert lapic.read(SVR, 0) == 0xFF
    assert lapic.read(IRR + 0x20, 0) == 0


def test_x2apic_msrs(lapic: Lapic) -> None:
    assert lapic.rdmsr(0x802, 0) is None  # in xAPIC mode the range does not exist
    assert lapic.wrmsr(0x80B, 0, 0) is None
    x2(lapic)
    assert lapic.rdmsr(0x802, 0) == 0
    assert lapic.rdmsr(0x80D, 0) == 1
    assert lapic.wrmsr(0x83F, 0x51, 0) == -1
    assert lapic.acknowledge() == 0x51
    assert lapic.rdmsr(0x812, 0) == 1 << 17
    assert lapic.wrmsr(0x80B, 0, 0) == -1
    assert lapic.wrmsr(0x830, (5 << 32) | 0x40, 0) == -1
    assert lapic.pending() == -1
    assert lapic.rdmsr(0x830, 0) == (5 << 32) | 0x40
    lapic.wrmsr(0x830, (0xFFFFFFFF << 32) | 0x40, 0)
    assert lapic.acknowledge() == 0x40
    lapic.accept(0x99, True)
    lapic.acknowledge()
    assert lapic.wrmsr(0x80B, 0, 0) == 0x99


@pytest.mark.parametrize(
    ("msr", "value"),
    [
        (0x802, 0),
        (0x803, 0),
        (0x808, 0x100),
        (0x80A, 0),
        (0x80B, 1),
        (0x80D, 0),
        (0x80E, 0),
        (0x810, 0),
        (0x828, 1),
        (0x830, 1 << 20),
        (0x831, 0),
        (0x832, 1 << 32),
        (0x832, 1 << 11),
        (0x838, 1 << 32),
        (0x839, 0),
        (0x83F, 0x100),
        (0x840, 0),
        (0x8FF, 0),
    ],
)
def test_x2apic_writes_that_fault(lapic: Lapic, msr: int, value: int) -> None:
    before = x2(lapic).state(0)
    assert lapic.wrmsr(msr, value, 0) is None
    assert lapic.state(0) == before


@pytest.mark.parametrize("msr", [0x800, 0x809, 0x80B, 0x80C, 0x80E, 0x82F, 0x831, 0x83F, 0x840, 0x8FF])
def test_x2apic_reads_that_fault(lapic: Lapic, msr: int) -> None:
    assert x2(lapic).rdmsr(msr, 0) is None


def test_x2apic_destinations() -> None:
    apic = Lapic(0x25)
    x2(apic)
    assert apic.rdmsr(0x802, 0) == 0x25
    assert apic.rdmsr(0x80D, 0) == 0x20020
    assert apic.matches(0x25, False)
    assert not apic.matches(0xFF, False)
    assert apic.matches(0xFFFFFFFF, False)
    assert apic.matches(0x200FF, True)
    assert not apic.matches(0x300FF, True)
    apic.wrmsr(0x80F, 0x1FF, 0)
    assert apic.message(0xFF, False, 0, 0x40, False)  # the devices' 8-bit broadcast


def test_state_is_kvms_page(lapic: Lapic) -> None:
    lapic.accept(0x41, True)
    lapic.write(TPR, 0x20, 0)
    page = lapic.state(0)
    assert len(page) == 1024
    assert struct.unpack_from("<I", page, VERSION) == (0x50014,)
    assert struct.unpack_from("<I", page, IRR + 0x20) == (2,)
    assert struct.unpack_from("<I", page, TPR) == (0x20,)


def test_restored_state_goes_on(lapic: Lapic) -> None:
    for vector in (0x41, 0x61):
        lapic.accept(vector, True)
    lapic.acknowledge()
    lapic.write(LVT_TIMER, 0x70 | PERIODIC, 0)
    lapic.write(INITIAL, 1_000_000, 0)
    other = Lapic()
    other.restore(lapic.state(300_000), 9_000_000)
    assert other.deadline() == 9_700_000
    assert other.pending() == -1
    assert other.write(EOI, 0, 9_000_000) == 0x61
    assert other.acknowledge() == 0x41


@pytest.mark.parametrize("msr_first", [True, False])
def test_restored_deadline(lapic: Lapic, msr_first: bool) -> None:
    lapic.tsc_khz = 1_000_000
    lapic.write(LVT_TIMER, 0x40 | DEADLINE, 0)
    page = lapic.state(0)
    other = Lapic()
    other.tsc_khz = 1_000_000
    other.set_tsc(100, 500)
    if msr_first:
        other.restore_tsc_deadline(1100)
    other.restore(page, 500)
    if not msr_first:
        other.restore_tsc_deadline(1100)
    assert other.deadline() == 1500


def test_kvms_periodic_timer_at_the_end_of_its_count_does_not_stop(lapic: Lapic) -> None:
    lapic.write(LVT_TIMER, 0x40 | PERIODIC, 0)
    lapic.write(INITIAL, 1_000_000, 0)
    page = bytearray(lapic.state(0))
    struct.pack_into("<I", page, CURRENT, 0)
    lapic.restore(bytes(page), 0)
    assert lapic.deadline() <= 1_000_000


def test_restoring_what_is_no_state_is_refused() -> None:
    with pytest.raises(BadInput, match="1024"):
        Lapic().restore(b"\0" * 1023)
    with pytest.raises(BadInput, match="254"):
        Lapic(255)


def test_a_base_that_no_mode_has_is_not_restored() -> None:
    apic = Lapic()
    assert not apic.restore_base(0xFEE00400)
    assert apic.apic_base == BASE
    assert apic.restore_base(X2APIC)
    assert apic.restore_base(BASE)


POKE = st.one_of(
    st.tuples(st.just("mmio"), st.integers(0, 0x41).map(lambda i: i * 16), st.integers(0, 2**32 - 1)),
    st.tuples(st.just("accept"), st.integers(-1, 300), st.booleans()),
    st.tuples(st.just("take"), st.just(0), st.just(0)),
    st.tuples(st.just("enable"), st.just(0), st.just(0)),
    st.tuples(
        st.just("msr"),
        st.sampled_from([0x1B, 0x6E0, *range(0x800, 0x842)]),
        st.one_of(st.integers(0, 2**64 - 1), st.integers(0, 0x7FFFF), st.sampled_from([BASE, X2APIC, 0xFEE00100])),
    ),
)


def poke(apic: Lapic, pokes: list[tuple[str, int, int]]) -> int:
    now = 0
    for kind, where, value in pokes:
        now += value % 1_000_003
        if kind == "mmio":
            apic.read(where, now)
            apic.write(where, value, now)
        elif kind == "accept":
            apic.accept(where, bool(value))
        elif kind == "take":
            apic.acknowledge()
        elif kind == "enable":
            apic.write(SVR, 0x1FF, now)
        else:
            apic.rdmsr(where, now)
            apic.wrmsr(where, value, now)
        apic.poll(now)
        assert apic.deadline() > now
        assert -1 <= apic.pending() <= 255
        assert apic.pending() < 0 or apic.pending() >= 16
    return now


@given(st.lists(POKE, max_size=60))
def test_any_poke_leaves_a_state_that_restores_to_itself(pokes: list[tuple[str, int, int]]) -> None:
    apic = Lapic()
    apic.tsc_khz = 2_000_000
    now = poke(apic, pokes)
    state, base, pending = apic.state(now), apic.apic_base, apic.pending()
    other = Lapic()
    other.tsc_khz = 2_000_000
    assert other.restore_base(base)
    other.restore_tsc_deadline(apic.rdmsr(0x6E0, now) or 0)
    other.restore(state, now)
    assert other.state(now) == state
    assert other.pending() == pending
    assert other.deadline() == apic.deadline()


@given(st.binary(min_size=1024, max_size=1024), st.sampled_from([BASE, X2APIC, 0xFEE00100]), st.lists(POKE, max_size=8))
def test_any_page_restores(page: bytes, base: int, pokes: list[tuple[str, int, int]]) -> None:
    apic = Lapic()
    apic.restore_base(base)
    apic.restore(page, 0)
    once = apic.state(0)
    apic.restore(once, 0)
    assert apic.state(0) == once
    poke(apic, pokes)
