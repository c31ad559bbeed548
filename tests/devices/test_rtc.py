"""The clock and CMOS memory, with a host clock that the test moves."""

from __future__ import annotations

import calendar

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.devices.lines import SECOND
from kvmkit.devices.rtc import UPDATE_WARNING_NS, A, B, C, Reg, Rtc
from kvmkit.errors import BadInput

START = calendar.timegm((2031, 12, 31, 23, 59, 58)) * SECOND  # a Wednesday


class Clock:
    """An RTC, its host clock and its line."""

    def __init__(self, now: int = START, memory: int = 0, high: int = 0) -> None:
        self.now = now
        self.levels: list[int] = []
        self.told = 0
        self.chip = Rtc(lambda: self.now, self.levels.append, memory=memory, high=high)
        self.chip.rearm = self._tell

    def _tell(self) -> None:
        self.told += 1

    def __getitem__(self, register: int) -> int:
        self.chip.write(0, 1, register)
        return self.chip.read(1, 1)

    def __setitem__(self, register: int, value: int) -> None:
        self.chip.write(0, 1, register)
        self.chip.write(1, 1, value)

    def show(self) -> list[int]:
        return [self[r] for r in (Reg.CENTURY, Reg.YEAR, Reg.MONTH, Reg.DAY, Reg.HOURS, Reg.MINUTES, Reg.SECONDS)]

    def sleep(self) -> int:
        """Let the time to the next deadline pass; how long that was."""
        left = self.chip.deadline()
        assert left is not None
        self.now += left
        self.chip.expire()
        return left

    @property
    def line(self) -> int:
        return self.levels[-1] if self.levels else 0


def test_shows_the_hosts_time_in_bcd():
    clock = Clock()
    assert clock.show() == [0x20, 0x31, 0x12, 0x31, 0x23, 0x59, 0x58]
    assert clock[Reg.WEEKDAY] == 4
    clock.now += 2 * SECOND
    assert clock.show() == [0x20, 0x32, 0x01, 0x01, 0x00, 0x00, 0x00]


def test_shows_binary_and_twelve_hours():
    clock = Clock()
    clock[Reg.B] = B.BINARY
    assert clock.show() == [20, 31, 12, 31, 11 | 0x80, 59, 58]
    clock.now += 2 * SECOND
    assert clock[Reg.HOURS] == 12, "midnight is 12 am"
    clock.now += 12 * 3600 * SECOND
    assert clock[Reg.HOURS] == 12 | 0x80
    clock[Reg.B] = 0
    assert clock[Reg.HOURS] == 0x92


def test_the_guest_sets_the_time_and_it_runs_on():
    clock = Clock()
    clock[Reg.B] = B.SET | B.HOURS_24
    for register, value in zip(
        (Reg.CENTURY, Reg.YEAR, Reg.MONTH, Reg.DAY, Reg.HOURS, Reg.MINUTES, Reg.SECONDS),
        (0x19, 0x99, 0x02, 0x28, 0x23, 0x59, 0x59),
        strict=True,
    ):
        clock[register] = value
    clock.now += 100 * SECOND
    assert clock.show() == [0x19, 0x99, 0x02, 0x28, 0x23, 0x59, 0x59], "it stands still while it is set"
    clock[Reg.B] = B.HOURS_24
    assert clock.show() == [0x19, 0x99, 0x02, 0x28, 0x23, 0x59, 0x59]
    clock.now += SECOND
    assert clock.show() == [0x19, 0x99, 0x03, 0x01, 0x00, 0x00, 0x00]


def test_update_in_progress_warns_before_the_second_changes():
    clock = Clock()
    assert not clock[Reg.A] & A.UPDATE_IN_PROGRESS
    clock.now += SECOND - UPDATE_WARNING_NS
    assert clock[Reg.A] & A.UPDATE_IN_PROGRESS
    clock.now += UPDATE_WARNING_NS
    assert not clock[Reg.A] & A.UPDATE_IN_PROGRESS


def test_update_interrupt_comes_at_the_next_second_and_once_until_read():
    clock = Clock(START + SECOND // 4)
    clock[Reg.B] = B.HOURS_24 | B.UPDATE_INTERRUPT
    assert clock.told > 0
    assert clock.sleep() == 3 * SECOND // 4
    assert clock.line == 1
    assert clock.chip.deadline() is None
    assert clock[Reg.C] & 0xF0 & ~C.PERIODIC == C.REQUEST | C.UPDATE
    assert (clock.line, clock[Reg.C]) == (0, 0)
    assert clock.sleep() == SECOND


@pytest.mark.parametrize(("rate", "hertz"), [(6, 1024), (15, 2), (3, 8192), (1, 256), (2, 128)])
def test_periodic_interrupt_has_its_rate(rate, hertz):
    clock = Clock()
    clock[Reg.A] = 0x20 | rate
    clock[Reg.B] = B.HOURS_24 | B.PERIODIC_INTERRUPT
    start = clock.now
    for _ in range(hertz):
        clock.sleep()
        assert clock[Reg.C] & C.PERIODIC
    assert abs(clock.now - start - SECOND) <= SECOND // hertz


def test_rate_zero_is_off():
    clock = Clock()
    clock[Reg.A] = 0x20
    clock[Reg.B] = B.HOURS_24 | B.PERIODIC_INTERRUPT
    assert clock.chip.deadline() is None


@pytest.mark.parametrize(
    ("alarm", "wait"),
    [
        ((0x23, 0x59, 0x59), 1),
        ((0x00, 0x00, 0x05), 7),
        ((0x23, 0x59, 0x58), 24 * 3600),  # this second has begun
        ((0xFF, 0xFF, 0xFF), 1),
        ((0xFF, 0xFF, 0x30), 32),
        ((0xC0, 0x10, 0x00), 10 * 60 + 2),
        ((0x12, 0xFF, 0x00), 12 * 3600 + 2),
    ],
)
def test_alarm_comes_when_its_bytes_match(alarm, wait):
    clock = Clock()
    clock[Reg.HOURS_ALARM], clock[Reg.MINUTES_ALARM], clock[Reg.SECONDS_ALARM] = alarm
    clock[Reg.C]
    clock[Reg.B] = B.HOURS_24 | B.ALARM_INTERRUPT
    assert clock.sleep() == wait * SECOND
    assert clock[Reg.C] & (C.ALARM | C.REQUEST) == C.ALARM | C.REQUEST


def test_an_alarm_that_is_no_time_never_comes():
    clock = Clock()
    clock[Reg.HOURS_ALARM] = 0x45
    clock[Reg.B] = B.HOURS_24 | B.ALARM_INTERRUPT
    assert clock.chip.deadline() is None


def test_flags_can_be_polled_without_interrupts():
    clock = Clock()
    clock[Reg.C]
    clock.now += SECOND
    assert clock[Reg.C] & (C.UPDATE | C.PERIODIC | C.REQUEST) == C.UPDATE | C.PERIODIC
    assert clock.levels == []


def test_memory_size_is_where_firmware_looks():
    clock = Clock(memory=3 << 30, high=2 << 30)
    assert clock[0x15] | clock[0x16] << 8 == 640
    assert clock[0x17] | clock[0x18] << 8 == 0xFC00
    assert (clock[0x34] | clock[0x35] << 8) << 16 == (3 << 30) - (16 << 20)
    assert (clock[0x5B] | clock[0x5C] << 8 | clock[0x5D] << 16) << 16 == 2 << 30
    small = Clock(memory=8 << 20)
    assert small[0x30] | small[0x31] << 8 == 7 * 1024
    assert small[0x34] | small[0x35] << 8 == 0


def test_other_bytes_are_memory_and_status_registers_are_not():
    clock = Clock()
    clock[0x40] = 0x99
    clock[Reg.D] = 0
    clock[Reg.C] = 0xFF
    assert clock[0x40] == 0x99
    assert clock[Reg.D] == 0x80


def test_a_host_clock_that_goes_back_does_no_harm():
    clock = Clock()
    clock[Reg.B] = B.HOURS_24 | B.UPDATE_INTERRUPT
    clock.now -= 3600 * SECOND
    clock.chip.expire()
    left = clock.chip.deadline()
    assert left is None or left <= SECOND
    assert clock[Reg.HOURS] == 0x22


@given(
    st.lists(
        st.tuples(st.integers(0, 1), st.sampled_from((1, 2, 4)), st.integers(0, 2**32 - 1), st.integers(0, 10**11)),
        max_size=80,
    ),
    st.integers(0, 2**62),
)
def test_no_access_hurts_and_any_state_can_be_saved(steps, start):
    clock = Clock(start)
    for offset, size, value, passed in steps:
        clock.chip.write(offset, size, value)
        clock.chip.read(offset, size)
        clock.now += passed
        left = clock.chip.deadline()
        assert left is None or left >= 0
        clock.chip.expire()
    state = msgspec.json.decode(msgspec.json.encode(clock.chip.state()), type=type(clock.chip.state()))
    other = Clock(clock.now)
    other.chip.restore(state)
    assert other.chip.state() == clock.chip.state()
    assert other.line == clock.line


def test_a_state_that_cannot_be_is_refused():
    clock = Clock()
    with pytest.raises(BadInput, match="clock"):
        clock.chip.restore(msgspec.structs.replace(clock.chip.state(), memory=bytes(5)))
    with pytest.raises(BadInput, match="index"):
        clock.chip.restore(msgspec.structs.replace(clock.chip.state(), index=128))
