"""The 8254 by its data sheet, and port 0x61. Times are in ns; `clocks` turns counts into them."""

import ctypes

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.accel.structures import Pit as PitState
from kvmkit.accel.tcg.pit import Pit
from kvmkit.errors import BadInput

HZ = 1193182
NEVER = 2**63 - 1
START = 5_000_000_000
CONTROL, PORT_B = 0x43, 0x61
GATE = 1


def clocks(count: int) -> int:
    """The first ns at which `count` clocks have passed since START."""
    return START + -(-count * 10**9 // HZ)


def program(pit: Pit, channel: int, mode: int, count: int, *, bcd: bool = False, now: int = START) -> None:
    pit.write(CONTROL, channel << 6 | 0x30 | mode << 1 | bcd, now)
    pit.write(0x40 + channel, count & 0xFF, now)
    pit.write(0x40 + channel, count >> 8, now)


def count(pit: Pit, channel: int, now: int) -> int:
    pit.write(CONTROL, channel << 6, now)
    low = pit.read(0x40 + channel, now)
    return low | pit.read(0x40 + channel, now) << 8


@pytest.fixture
def pit() -> Pit:
    """Channel 2's gate is high."""
    timer = Pit()
    timer.write(PORT_B, GATE, START)
    return timer


def test_claims_its_ports_only() -> None:
    assert [port for port in range(0x10000) if Pit().claims(port)] == [0x40, 0x41, 0x42, 0x43, 0x61]


def test_nothing_happens_before_a_count() -> None:
    timer = Pit()
    assert timer.deadline() == NEVER
    timer.write(CONTROL, 0x34, START)
    assert timer.deadline() == NEVER
    assert not timer.poll(START * 2)


def test_mode_0_interrupts_on_terminal_count(pit: Pit) -> None:
    program(pit, 0, 0, 1000)
    assert not pit.output(0, START)
    assert pit.deadline() == clocks(1000)
    assert count(pit, 0, clocks(400)) == 600
    assert not pit.poll(clocks(1000) - 1)
    assert pit.poll(clocks(1000))
    assert pit.output(0, clocks(1000))
    assert pit.deadline() == NEVER
    assert not pit.poll(clocks(5000))
    assert count(pit, 0, clocks(1001)) == 0xFFFF  # it counts on


def test_mode_0_first_byte_stops_the_count(pit: Pit) -> None:
    program(pit, 0, 0, 1000)
    pit.write(0x40, 10, clocks(500))
    assert pit.deadline() == NEVER
    assert not pit.output(0, clocks(2000))
    pit.write(0x40, 0, clocks(2000))
    assert clocks(2010) <= pit.deadline() <= clocks(2011)


def test_mode_0_gate_holds_the_count(pit: Pit) -> None:
    program(pit, 2, 0, 1000)
    pit.write(PORT_B, 0, clocks(300))
    assert count(pit, 2, clocks(900)) == 700
    pit.write(PORT_B, GATE, clocks(1300))
    assert abs(count(pit, 2, clocks(1400)) - 600) <= 1
    assert not pit.read(PORT_B, clocks(1990)) & 0x20
    assert pit.read(PORT_B, clocks(2002)) & 0x20


def test_mode_1_waits_for_its_gate_and_can_be_triggered_again() -> None:
    timer = Pit()
    program(timer, 2, 1, 1000)
    assert timer.output(2, clocks(5000))
    timer.write(PORT_B, GATE, clocks(5000))
    assert not timer.output(2, clocks(5001))
    timer.write(PORT_B, 0, clocks(5500))
    assert not timer.output(2, clocks(5900))
    timer.write(PORT_B, GATE, clocks(5900))
    assert not timer.output(2, clocks(6800))
    assert timer.output(2, clocks(6901))


def test_mode_1_and_5_of_channel_0_are_never_triggered(pit: Pit) -> None:
    for mode in (1, 5):
        program(pit, 0, mode, 1000)
        assert pit.deadline() == NEVER
        assert pit.output(0, clocks(9999))


def test_mode_2_divides(pit: Pit) -> None:
    program(pit, 0, 2, 1000)
    assert pit.output(0, START)
    assert [count(pit, 0, clocks(n)) for n in (0, 1, 999, 1000, 1001)] == [1000, 999, 1, 1000, 999]
    assert [pit.output(0, clocks(n)) for n in (998, 999, 1000)] == [True, False, True]
    for period in range(1, 5):
        assert pit.deadline() == clocks(1000 * period)
        assert pit.poll(pit.deadline())


def test_missed_periods_count_once_and_stay_on_the_grid(pit: Pit) -> None:
    program(pit, 0, 2, 1000)
    assert pit.poll(clocks(7500))
    assert not pit.poll(clocks(7500))
    assert pit.deadline() == clocks(8000)


def test_hours_do_not_make_it_drift(pit: Pit) -> None:
    program(pit, 0, 2, 11932)
    week = 7 * 86400 * HZ // 11932
    assert pit.poll(clocks(11932 * week))
    assert pit.deadline() == clocks(11932 * (week + 1))


@pytest.mark.parametrize("mode", [2, 3])
def test_a_tiny_period_is_stretched(pit: Pit, mode: int) -> None:
    program(pit, 0, mode, 1)
    now = START
    for _ in range(100):
        now = pit.deadline()
        assert pit.poll(now)
    assert now - START >= 99 * 50_000


def test_mode_3_is_a_square_wave(pit: Pit) -> None:
    program(pit, 2, 3, 1000)
    assert [pit.output(2, clocks(n)) for n in (0, 499, 500, 999, 1000)] == [True, True, False, False, True]
    assert [count(pit, 2, clocks(n)) for n in (0, 1, 499, 500, 501)] == [1000, 998, 2, 1000, 998]
    program(pit, 2, 3, 5)
    assert [pit.output(2, clocks(n)) for n in range(6)] == [True, True, True, False, False, True]
    assert [count(pit, 2, clocks(n)) for n in range(6)] == [4, 2, 0, 4, 2, 4]


def test_mode_3_gate_stops_it_high_and_starts_it_anew(pit: Pit) -> None:
    program(pit, 2, 3, 1000)
    pit.write(PORT_B, 0, clocks(700))
    assert pit.output(2, clocks(700))
    pit.write(PORT_B, GATE, clocks(800))
    assert count(pit, 2, clocks(800)) == 1000
    assert pit.output(2, clocks(1299))
    assert not pit.output(2, clocks(1301))


def test_mode_4_strobes_once(pit: Pit) -> None:
    program(pit, 0, 4, 1000)
    assert [pit.output(0, clocks(n)) for n in (0, 999, 1000, 1001)] == [True, True, False, True]
    assert pit.deadline() == clocks(1001)
    assert pit.poll(clocks(1001))
    assert pit.deadline() == NEVER


def test_mode_5_strobes_after_its_trigger() -> None:
    timer = Pit()
    program(timer, 2, 5, 1000)
    assert timer.output(2, clocks(1000))
    timer.write(PORT_B, GATE, clocks(2000))
    assert [timer.output(2, clocks(n) + 1) for n in (2999, 3000, 3001)] == [True, False, True]


@pytest.mark.parametrize(("mode", "same"), [(6, 2), (7, 3)])
def test_modes_6_and_7_are_2_and_3(pit: Pit, mode: int, same: int) -> None:
    program(pit, 2, mode, 1000)
    pit.write(CONTROL, 0xE8, START)
    assert pit.read(0x42, START) >> 1 & 7 == same


def test_count_0_is_the_longest(pit: Pit) -> None:
    program(pit, 0, 2, 0)
    assert pit.deadline() == clocks(0x10000)
    assert count(pit, 0, START) == 0
    assert count(pit, 0, clocks(1)) == 0xFFFF
    program(pit, 0, 2, 0, bcd=True)
    assert pit.deadline() == clocks(10000)
    assert count(pit, 0, clocks(1)) == 0x9999


def test_decimal(pit: Pit) -> None:
    program(pit, 0, 0, 0x1234, bcd=True)
    assert pit.deadline() == clocks(1234)
    assert count(pit, 0, clocks(35)) == 0x1199
    assert count(pit, 0, clocks(1235)) == 0x9999


def test_one_byte_counts(pit: Pit) -> None:
    pit.write(CONTROL, 0x94, START)  # channel 2, low byte only, mode 2
    pit.write(0x42, 200, START)
    assert [pit.read(0x42, clocks(n)) for n in (0, 1, 200)] == [200, 199, 200]
    pit.write(CONTROL, 0xA4, START)  # high byte only
    pit.write(0x42, 2, START)
    assert [pit.read(0x42, clocks(n)) for n in (0, 1, 257)] == [2, 1, 0]


def test_a_latch_holds_until_it_is_read(pit: Pit) -> None:
    program(pit, 2, 2, 1000)
    pit.write(CONTROL, 0x80, clocks(1))
    pit.write(CONTROL, 0x80, clocks(500))  # ignored: one is held already
    assert pit.read(0x42, clocks(700)) == 999 & 0xFF
    assert pit.read(0x42, clocks(700)) == 999 >> 8
    assert pit.read(0x42, clocks(700)) == 300 & 0xFF
    assert pit.read(0x42, clocks(700)) == 300 >> 8


def test_read_back(pit: Pit) -> None:
    program(pit, 0, 2, 1000)
    program(pit, 2, 3, 0x1000)
    pit.write(CONTROL, 0xC0 | 2 | 8, clocks(100))  # status and count of 0 and 2
    assert pit.read(0x40, clocks(600)) == 0x80 | 0x30 | 2 << 1
    assert pit.read(0x40, clocks(600)) | pit.read(0x40, clocks(600)) << 8 == 900
    assert pit.read(0x42, clocks(600)) == 0x80 | 0x30 | 3 << 1
    assert pit.read(0x42, clocks(600)) | pit.read(0x42, clocks(600)) << 8 == 0x1000 - 200
    pit.write(CONTROL, 0x30 | 0 << 6, clocks(700))
    pit.write(CONTROL, 0xE2, clocks(700))  # status of 0: null count, OUT low
    assert pit.read(0x40, clocks(700)) == 0x40 | 0x30
    assert pit.read(CONTROL, clocks(700)) == 0xFF


def test_port_61(pit: Pit) -> None:
    program(pit, 2, 0, 1000)
    pit.write(PORT_B, 3, START)
    assert pit.read(PORT_B, START) & ~0x10 == 3
    assert pit.read(PORT_B, clocks(1000)) & ~0x10 == 0x23
    pit.write(PORT_B, 0, clocks(1000))
    assert pit.read(PORT_B, clocks(1000)) & ~0x10 == 0x20
    toggles = [pit.read(PORT_B, START + n * 15_085) & 0x10 for n in range(4)]
    assert toggles[0] == toggles[2] != toggles[1] == toggles[3]


def test_state_is_kvms(pit: Pit) -> None:
    program(pit, 0, 2, 1000)
    pit.write(PORT_B, 3, START)
    state = PitState.from_buffer_copy(pit.state(clocks(10)))
    channel = state.channels[0]
    assert (channel.count, channel.mode, channel.rw_mode, channel.gate) == (1000, 2, 3, 1)
    assert channel.count_load_time == START
    assert state.channels[2].gate == 1
    assert state.flags == 2


def test_restored_state_goes_on(pit: Pit) -> None:
    program(pit, 0, 2, 1000)
    program(pit, 2, 0, 5000)
    pit.write(PORT_B, 0, clocks(2000))
    other = Pit()
    other.restore(pit.state(clocks(3500)), clocks(3500))
    assert other.deadline() == clocks(4000)
    assert abs(count(other, 2, clocks(9000)) - 3000) <= 1
    other.write(PORT_B, GATE, clocks(9000))
    assert abs(count(other, 2, clocks(10_000)) - 2000) <= 1


def test_a_one_shot_that_ran_out_is_not_run_again(pit: Pit) -> None:
    program(pit, 0, 0, 1000)
    pit.poll(clocks(1000))
    other = Pit()
    other.restore(pit.state(clocks(1100)), clocks(1100))
    assert other.deadline() == NEVER
    assert other.output(0, clocks(1100))


def test_a_one_shot_that_is_late_still_comes(pit: Pit) -> None:
    program(pit, 0, 0, 1000)
    other = Pit()
    other.restore(pit.state(START), clocks(90_000))
    assert other.poll(clocks(90_000))


def test_another_hosts_clock(pit: Pit) -> None:
    program(pit, 0, 2, 1000)
    other = Pit()
    other.restore(pit.state(START), 1000)
    assert 1000 < other.deadline() <= 1000 + clocks(1000) - START


def test_kvms_unprogrammed_timer() -> None:
    state = PitState()
    for channel in range(3):
        state.channels[channel].mode = 0xFF
        state.channels[channel].count = 0x10000
    timer = Pit()
    timer.restore(bytes(state), START)
    assert timer.deadline() == NEVER


def test_restoring_what_is_no_state_is_refused() -> None:
    with pytest.raises(BadInput, match="112"):
        Pit().restore(b"\0" * 111)


POKES = st.lists(
    st.tuples(st.sampled_from([0x40, 0x41, 0x42, 0x43, 0x61]), st.integers(0, 255), st.integers(0, 3_000_000)),
    max_size=60,
)


def poke(pit: Pit, pokes: list[tuple[int, int, int]], now: int = START) -> int:
    for port, value, passed in pokes:
        now += passed
        pit.write(port, value, now)
        assert 0 <= pit.read(port, now) <= 255
        pit.poll(now)
        assert pit.deadline() > now
    return now


@given(POKES)
def test_any_poke_leaves_a_state_that_restores_to_itself(pokes: list[tuple[int, int, int]]) -> None:
    pit = Pit()
    now = poke(pit, pokes)
    state = pit.state(now)
    other = Pit()
    other.restore(state, now)
    assert other.state(now) == state
    assert [other.output(channel, now) for channel in range(3)] == [pit.output(channel, now) for channel in range(3)]


@given(st.binary(min_size=112, max_size=112), st.integers(0, 2**62), POKES)
def test_any_bytes_restore(data: bytes, now: int, pokes: list[tuple[int, int, int]]) -> None:
    pit = Pit()
    pit.restore(data, now)
    once = pit.state(now)
    pit.restore(once, now)
    assert pit.state(now) == once
    pit.poll(now)
    poke(pit, pokes, now)


def test_the_structure_is_the_kernels() -> None:
    assert len(Pit().state()) == ctypes.sizeof(PitState) == 112
