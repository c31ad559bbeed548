"""ACPI's power management, the reset port, the keyboard controller and the debug ports."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.bus import AddressSpace, pc
from kvmkit.devices.debug import DebugConsole, DebugExit
from kvmkit.devices.i8042 import I8042, Config, Status, SystemControlA
from kvmkit.devices.ignored import IGNORED, add_ignored
from kvmkit.devices.lines import SECOND
from kvmkit.devices.power import TIMER_HZ, Control, Pm1, PowerManagement, ResetPort
from kvmkit.devices.sinks import ConsoleLog
from kvmkit.errors import BadInput

STATUS, ENABLE, CONTROL, TIMER = 0, 2, 4, 8
GPE_STATUS, GPE_ENABLE = 0x20, 0x24


class Power:
    def __init__(self, now: int = 10**15) -> None:
        self.now = now
        self.offs = 0
        self.levels: list[int] = []
        self.chip = PowerManagement(self._off, self.levels.append, lambda: self.now)

    def _off(self) -> None:
        self.offs += 1

    @property
    def line(self) -> int:
        return self.levels[-1] if self.levels else 0


def test_power_button_raises_the_sci_until_the_guest_clears_it():
    power = Power()
    power.chip.write(ENABLE, 2, Pm1.POWER_BUTTON)
    power.chip.press_power_button()
    assert power.line == 1
    assert power.chip.read(STATUS, 2) == Pm1.POWER_BUTTON
    power.chip.write(STATUS, 2, Pm1.TIMER)
    assert power.line == 1, "writing another bit clears nothing"
    power.chip.write(STATUS, 2, Pm1.POWER_BUTTON)
    assert (power.line, power.chip.read(STATUS, 2)) == (0, 0)


def test_a_press_before_the_guest_listens_is_told_later():
    power = Power()
    power.chip.press_power_button()
    assert power.line == 0
    power.chip.write(ENABLE + 1, 1, Pm1.POWER_BUTTON >> 8)
    assert power.line == 1


def test_only_s5_powers_off_and_only_with_sleep_enable():
    power = Power()
    power.chip.write(CONTROL, 2, pc.SLEEP_S5 << 10)
    assert power.offs == 0
    power.chip.write(CONTROL, 2, 3 << 10 | Control.SLEEP_ENABLE)
    assert power.offs == 0
    power.chip.write(CONTROL, 2, pc.SLEEP_S5 << 10 | Control.SLEEP_ENABLE)
    assert power.offs == 1


def test_the_machine_is_always_in_acpi_mode():
    power = Power()
    power.chip.write(CONTROL, 2, 0)
    assert power.chip.read(CONTROL, 2) == Control.SCI_ENABLE


def test_the_timer_runs_at_its_frequency_and_wraps():
    power = Power()
    assert power.chip.read(TIMER, 4) == 0
    power.now += SECOND
    assert abs(power.chip.read(TIMER, 4) - TIMER_HZ) <= 1
    power.now += (1 << 32) * SECOND // TIMER_HZ
    assert abs(power.chip.read(TIMER, 4) - TIMER_HZ) <= 2
    assert power.chip.read(TIMER + 1, 2) == power.chip.read(TIMER, 4) >> 8 & 0xFFFF


def test_the_timer_tells_when_its_top_bit_changes():
    power = Power()
    power.chip.write(ENABLE, 2, Pm1.TIMER)
    left = power.chip.deadline()
    assert left is not None
    assert abs(left - (1 << 31) * SECOND // TIMER_HZ) < 1000
    power.now += left
    power.chip.expire()
    assert power.line == 1
    assert power.chip.deadline() is None
    power.chip.write(STATUS, 2, Pm1.TIMER)
    assert power.line == 0
    assert power.chip.deadline() is not None


def test_general_purpose_events():
    power = Power()
    power.chip.raise_event(9)
    assert power.line == 0
    power.chip.write(GPE_ENABLE + 1, 1, 2)
    assert power.line == 1
    assert power.chip.read(GPE_STATUS, 4) == 1 << 9
    power.chip.write(GPE_STATUS, 4, 1 << 9)
    assert power.line == 0


@given(st.lists(st.tuples(st.integers(0, pc.PM_SIZE - 1), st.sampled_from((1, 2, 4)), st.integers(0, 2**32 - 1))))
def test_no_access_hurts_and_any_state_can_be_saved(steps):
    power = Power()
    for offset, size, value in steps:
        power.chip.write(offset, size, value)
        assert 0 <= power.chip.read(offset, size) < 1 << 8 * size
        power.now += value
        power.chip.expire()
    state = msgspec.json.decode(msgspec.json.encode(power.chip.state()), type=type(power.chip.state()))
    other = Power(now=77)
    other.chip.restore(state)
    assert other.chip.state() == power.chip.state()
    assert other.line == power.line
    with pytest.raises(BadInput, match="enable"):
        other.chip.restore(msgspec.structs.replace(state, enable=1 << 16))


# Resets


class Resets:
    def __init__(self) -> None:
        self.count = 0

    def __call__(self) -> None:
        self.count += 1


def test_the_reset_port_resets_on_its_rising_bit():
    resets = Resets()
    port = ResetPort(resets)
    port.write(0, 1, 2)
    assert (resets.count, port.read(0, 1)) == (0, 2)
    port.write(0, 1, 6)
    port.write(0, 1, 6)
    assert resets.count == 1


def test_the_keyboard_controllers_reset_line():
    resets = Resets()
    chip = I8042(resets)
    chip.command_port.write(0, 1, 0xFF)
    assert resets.count == 0
    chip.command_port.write(0, 1, 0xFE)
    assert resets.count == 1
    chip.command_port.write(0, 1, 0xD1)
    chip.write(0, 1, 0x02)
    assert resets.count == 2


def test_port_92_resets_on_its_rising_bit_and_keeps_a20():
    resets = Resets()
    port = SystemControlA(resets)
    port.write(0, 1, 2)
    assert (resets.count, port.read(0, 1)) == (0, 2)
    port.write(0, 1, 3)
    assert resets.count == 1


def test_keyboard_controller_passes_its_self_test():
    chip = I8042(Resets())
    assert not chip.command_port.read(0, 1) & Status.OUTPUT_FULL
    chip.command_port.write(0, 1, 0xAA)
    assert chip.command_port.read(0, 1) & (Status.OUTPUT_FULL | Status.SYSTEM) == Status.OUTPUT_FULL | Status.SYSTEM
    assert chip.read(0, 1) == 0x55
    assert not chip.command_port.read(0, 1) & Status.OUTPUT_FULL


def test_a_keyboard_that_is_not_there_times_out_at_once():
    levels: list[int] = []
    chip = I8042(Resets(), levels.append)
    chip.command_port.write(0, 1, 0x60)
    chip.write(0, 1, Config.KEYBOARD_INTERRUPT)
    chip.command_port.write(0, 1, 0x20)
    assert chip.read(0, 1) == Config.KEYBOARD_INTERRUPT
    chip.write(0, 1, 0xFF)
    assert levels[-1] == 1
    assert chip.command_port.read(0, 1) & Status.TIMEOUT
    assert chip.read(0, 1) == 0xFE
    assert levels[-1] == 0


def test_a20_gate_is_remembered():
    chip = I8042(Resets())
    for command, bit in ((0xDD, 0), (0xDF, 2)):
        chip.command_port.write(0, 1, command)
        chip.command_port.write(0, 1, 0xD0)
        assert chip.read(0, 1) & 2 == bit


@given(st.lists(st.tuples(st.booleans(), st.integers(0, 2**32 - 1))))
def test_no_command_hurts_the_keyboard_controller(steps):
    chip = I8042(Resets())
    for command, value in steps:
        (chip.command_port if command else chip).write(0, 1, value)
        assert 0 <= chip.command_port.read(0, 1) < 256
    other = I8042(Resets())
    other.restore(msgspec.json.decode(msgspec.json.encode(chip.state())))
    assert other.state() == chip.state()


# Debugging and what is ignored


def test_debug_console_says_that_it_is_there_and_passes_bytes_on():
    log = ConsoleLog()
    console = DebugConsole(log)
    assert console.read(0, 1) == 0xE9
    for byte in b"ok":
        console.write(0, 1, byte)
    assert log.tail() == b"ok"


def test_debug_exit_makes_an_odd_status():
    seen: list[int] = []
    device = DebugExit(seen.append)
    device.write(0, 1, 0x10)
    device.write(0, 4, 0xFFFFFFFF)
    assert seen == [0x21, 0xFFFFFFFF]


def test_ignored_ports_are_claimed_and_say_why():
    ports = AddressSpace("ports")
    add_ignored(ports)
    assert all(entry.reason for entry in IGNORED)
    ports.write(0x80, 1, 5)
    assert ports.read(0x80, 1) & 0xFF == 0xFF
    assert ports.unclaimed == 0
    assert ports.read(0xCF8, 4) & 0xFFFFFFFF == 0xFFFFFFFF, "no PCI"
