"""ACPI's fixed power-management registers, and the PC's reset port. Source: ACPI 6.5, 4.8 "ACPI Register Model".

The tables have no SMI command port, so the machine is always in ACPI mode and SCI_EN always reads 1.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable
from enum import IntFlag
from typing import Annotated

import msgspec
from msgspec import Meta

from kvmkit.bus import Device, pc
from kvmkit.devices.lines import SECOND, Clock, Line, OutputLine, nobody, unconnected
from kvmkit.devices.saved import checked

TIMER_HZ = 3_579_545
TIMER_BITS = 32
_HALF_TURN = 1 << (TIMER_BITS - 1)


class Pm1(IntFlag):
    """PM1 status and enable."""

    TIMER = 1
    BUS_MASTER = 1 << 4
    GLOBAL = 1 << 5
    POWER_BUTTON = 1 << 8
    SLEEP_BUTTON = 1 << 9
    RTC = 1 << 10
    WAKE = 1 << 15


STATUS_BITS = int(Pm1.TIMER | Pm1.BUS_MASTER | Pm1.GLOBAL | Pm1.POWER_BUTTON | Pm1.SLEEP_BUTTON | Pm1.RTC | Pm1.WAKE)
ENABLE_BITS = int(Pm1.TIMER | Pm1.GLOBAL | Pm1.POWER_BUTTON | Pm1.SLEEP_BUTTON | Pm1.RTC)


class Control(IntFlag):
    """PM1 control. SLEEP_ENABLE is written only, and reads as 0."""

    SCI_ENABLE = 1
    BUS_MASTER_RELOAD = 2
    GLOBAL_RELEASE = 4
    SLEEP_TYPE = 7 << 10
    SLEEP_ENABLE = 1 << 13


CONTROL_KEPT = int(Control.BUS_MASTER_RELOAD | Control.SLEEP_TYPE)

# Offsets from PM_BASE of each register, in bytes.
_STATUS = pc.PM1_EVENT - pc.PM_BASE
_ENABLE = _STATUS + 2
_CONTROL = pc.PM1_CONTROL - pc.PM_BASE
_TIMER = pc.PM_TIMER - pc.PM_BASE
_GPE_STATUS = pc.GPE0 - pc.PM_BASE
_GPE_BYTES = pc.GPE0_BYTES // 2
_GPE_ENABLE = _GPE_STATUS + _GPE_BYTES


class PowerState(msgspec.Struct, forbid_unknown_fields=True):
    """`timer` is the PM timer, in ticks of 3.579545 MHz, when the state was taken."""

    status: Annotated[int, Meta(ge=0, le=0xFFFF)] = 0
    enable: Annotated[int, Meta(ge=0, le=0xFFFF)] = 0
    control: Annotated[int, Meta(ge=0, le=0xFFFF)] = 0
    gpe_status: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] = 0
    gpe_enable: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] = 0
    timer: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] = 0


class PowerManagement(Device):
    """The block at PM_BASE. `clock` goes forward only; `power_off` is called when the guest enters S5."""

    def __init__(
        self, power_off: Callable[[], None], sci: Line = unconnected, clock: Clock = time.monotonic_ns
    ) -> None:
        self._lock = threading.RLock()  # vCPUs' threads, the one that keeps deadlines, the user's
        self.power_off = power_off
        self.line = OutputLine(sci)
        self.clock = clock
        self.rearm = nobody
        self.status = self.enable = self.control = self.gpe_status = self.gpe_enable = 0
        self.timer_offset = 0
        self.timer_offset = -self._ticks()
        self.half_turns = 0

    # What happens to the machine.

    def press_power_button(self) -> None:
        with self._lock:
            self.status |= Pm1.POWER_BUTTON
            self._update_line()

    def raise_event(self, gpe: int) -> None:
        """General-purpose event `gpe` (0 to 31): what a hot-plug or a battery tells."""
        with self._lock:
            self.gpe_status |= 1 << gpe
            self._update_line()

    # The timer.

    def _ticks(self) -> int:
        return self.clock() * TIMER_HZ // SECOND + self.timer_offset

    def _advance(self) -> None:
        half_turns = self._ticks() // _HALF_TURN
        if half_turns > self.half_turns:
            self.status |= Pm1.TIMER
        self.half_turns = half_turns

    def deadline(self) -> int | None:
        """See Timed: when the timer's top bit changes next, if the guest wants to be told."""
        if not self.enable & Pm1.TIMER or self.status & Pm1.TIMER:
            return None
        left = (self.half_turns + 1) * _HALF_TURN - self._ticks()
        return max(left * SECOND // TIMER_HZ + 1, 0)

    def expire(self) -> None:
        with self._lock:
            self._advance()
            self._update_line()

    def _update_line(self) -> None:
        self.line.update(1 if self.status & self.enable or self.gpe_status & self.gpe_enable else 0)

    # Registers. Drivers use every width; each access is taken apart into bytes.

    def read(self, offset: int, size: int) -> int:
        if _TIMER <= offset < _TIMER + 4:
            ticks = self._ticks() & 0xFFFFFFFF  # once for all its bytes, or they would not belong together
            return (ticks >> 8 * (offset - _TIMER)) & ((1 << 8 * size) - 1)
        value = 0
        with self._lock:
            for i in range(size):
                value |= self._read_byte(offset + i) << (8 * i)
        return value

    def _read_byte(self, offset: int) -> int:
        if _STATUS <= offset < _ENABLE:
            self._advance()
            return self.status >> 8 * (offset - _STATUS) & 0xFF
        if _ENABLE <= offset < _CONTROL:
            return self.enable >> 8 * (offset - _ENABLE) & 0xFF
        if _CONTROL <= offset < _CONTROL + 2:
            return (self.control | Control.SCI_ENABLE) >> 8 * (offset - _CONTROL) & 0xFF
        if _GPE_STATUS <= offset < _GPE_ENABLE:
            return self.gpe_status >> 8 * (offset - _GPE_STATUS) & 0xFF
        if _GPE_ENABLE <= offset < _GPE_ENABLE + _GPE_BYTES:
            return self.gpe_enable >> 8 * (offset - _GPE_ENABLE) & 0xFF
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            for i in range(size):
                self._write_byte(offset + i, value >> (8 * i) & 0xFF)
            self._update_line()

    def _write_byte(self, offset: int, value: int) -> None:
        if _STATUS <= offset < _ENABLE:
            self._advance()
            self.status &= ~(value << 8 * (offset - _STATUS))
            self.rearm()
        elif _ENABLE <= offset < _CONTROL:
            self.enable = _with_byte(self.enable, offset - _ENABLE, value) & ENABLE_BITS
            self.rearm()
        elif _CONTROL <= offset < _CONTROL + 2:
            new = _with_byte(self.control, offset - _CONTROL, value)
            self.control = new & CONTROL_KEPT
            if new & Control.SLEEP_ENABLE and (new & Control.SLEEP_TYPE) >> 10 == pc.SLEEP_S5:
                self.power_off()  # other states are not offered by the tables, and asking for one does nothing
        elif _GPE_STATUS <= offset < _GPE_ENABLE:
            self.gpe_status &= ~(value << 8 * (offset - _GPE_STATUS))
        elif _GPE_ENABLE <= offset < _GPE_ENABLE + _GPE_BYTES:
            self.gpe_enable = _with_byte(self.gpe_enable, offset - _GPE_ENABLE, value)

    # Saved state.

    def state(self) -> PowerState:
        self._advance()
        return PowerState(
            status=int(self.status),
            enable=self.enable,
            control=self.control,
            gpe_status=self.gpe_status,
            gpe_enable=self.gpe_enable,
            timer=self._ticks() & 0xFFFFFFFF,
        )

    def restore(self, state: object) -> None:
        """Take a saved state; the timer goes on from where it was."""
        new = checked(state, PowerState, "power management")
        self.status = new.status & STATUS_BITS
        self.enable = new.enable & ENABLE_BITS
        self.control = new.control & CONTROL_KEPT
        self.gpe_status, self.gpe_enable = new.gpe_status, new.gpe_enable
        self.timer_offset = 0
        self.timer_offset = new.timer - self._ticks()
        self.half_turns = self._ticks() // _HALF_TURN
        self._update_line()
        self.rearm()


def _with_byte(register: int, index: int, value: int) -> int:
    return register & ~(0xFF << 8 * index) | value << 8 * index


class ResetPort(Device):
    """Port 0xcf9 (Intel chipsets' Reset Control): bit 2 going from 0 to 1 resets, whatever bit 1 says of how hard."""

    RESET_CPU = 4
    KEPT = 0x0E

    def __init__(self, reset: Callable[[], None]) -> None:
        self.reset = reset
        self.value = 0

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        started = value & ~self.value & self.RESET_CPU
        self.value = value & self.KEPT
        if started:
            self.reset()
