"""The PC's keyboard controller (Intel 8042) without a keyboard: for its reset line, A20, and drivers that look for it.

Source: IBM PS/2 Hardware Interface Technical Reference, "Keyboard and Auxiliary Device Controller".
"""

from __future__ import annotations

from collections.abc import Callable
from enum import IntEnum, IntFlag
from typing import Annotated

import msgspec
from msgspec import Meta

from kvmkit.bus import Device
from kvmkit.devices.lines import Line, OutputLine, unconnected
from kvmkit.devices.saved import checked


class Status(IntFlag):
    """Port 0x64, read."""

    OUTPUT_FULL = 1
    INPUT_FULL = 2
    SYSTEM = 4  # the self test has passed
    COMMAND = 8  # the last write was to 0x64
    UNLOCKED = 0x10
    TIMEOUT = 0x40


class Command(IntEnum):
    """Port 0x64, written. 0xf0 to 0xff pulse the output port's lines whose bit is 0; bit 0 is the reset."""

    READ_CONFIG = 0x20
    WRITE_CONFIG = 0x60
    DISABLE_AUX = 0xA7
    ENABLE_AUX = 0xA8
    TEST_AUX = 0xA9
    SELF_TEST = 0xAA
    TEST_KEYBOARD = 0xAB
    DISABLE_KEYBOARD = 0xAD
    ENABLE_KEYBOARD = 0xAE
    READ_INPUT = 0xC0
    READ_OUTPUT = 0xD0
    WRITE_OUTPUT = 0xD1
    LOOP_KEYBOARD = 0xD2
    LOOP_AUX = 0xD3
    WRITE_AUX = 0xD4
    DISABLE_A20 = 0xDD
    ENABLE_A20 = 0xDF
    PULSE = 0xF0


class Config(IntFlag):
    """The command byte."""

    KEYBOARD_INTERRUPT = 1
    AUX_INTERRUPT = 2
    SYSTEM = 4
    KEYBOARD_DISABLED = 0x10
    AUX_DISABLED = 0x20
    TRANSLATE = 0x40


class Output(IntFlag):
    """The output port."""

    NO_RESET = 1
    A20 = 2


SELF_TEST_PASSED = 0x55
CLOCK_STUCK_LOW = 0x01
NO_ANSWER = 0xFE
NOTHING = 0xFF
_WITH_DATA = (Command.WRITE_CONFIG, Command.WRITE_OUTPUT, Command.LOOP_KEYBOARD, Command.LOOP_AUX, Command.WRITE_AUX)


class I8042State(msgspec.Struct, forbid_unknown_fields=True):
    status: Annotated[int, Meta(ge=0, le=0xFF)] = int(Status.UNLOCKED)
    config: Annotated[int, Meta(ge=0, le=0xFF)] = int(Config.KEYBOARD_DISABLED | Config.AUX_DISABLED)
    output: Annotated[int, Meta(ge=0, le=0xFF)] = int(Output.NO_RESET | Output.A20)
    data: Annotated[int, Meta(ge=0, le=0xFF)] = 0
    command: Annotated[int, Meta(ge=0, le=0xFF)] = 0
    """The command whose data byte is to come; 0: none."""


class I8042(Device):
    """Ports 0x60 and 0x64; the bus gives `command_port` its own range. A byte for the keyboard is not answered.

    A `hidden` one reads as if nothing were there, and only resets: UEFI then does not wait seconds for a keyboard.
    """

    def __init__(self, reset: Callable[[], None], irq: Line = unconnected, *, hidden: bool = False) -> None:
        self.reset = reset
        self.hidden = hidden
        self.line = OutputLine(irq)
        self.saved = I8042State()
        self.command_port = CommandPort(self)

    def read(self, offset: int, size: int) -> int:
        self.saved.status &= ~(Status.OUTPUT_FULL | Status.TIMEOUT)
        self.line.update(0)
        return NOTHING if self.hidden else self.saved.data

    def write(self, offset: int, size: int, value: int) -> None:
        value &= 0xFF
        saved = self.saved
        command, saved.command = saved.command, 0
        saved.status &= ~Status.COMMAND
        if command == Command.WRITE_CONFIG:
            saved.config = value
        elif command == Command.WRITE_OUTPUT:
            self._set_output(value)
        elif command == Command.LOOP_KEYBOARD:
            self._answer(value)
        elif command == Command.LOOP_AUX:
            self._answer(0)  # what tells a driver that there is no second channel
        else:
            saved.config &= ~Config.KEYBOARD_DISABLED
            self._answer(NO_ANSWER, Status.TIMEOUT)

    def read_status(self) -> int:
        return NOTHING if self.hidden else self.saved.status

    def write_command(self, value: int) -> None:
        saved = self.saved
        saved.status |= Status.COMMAND
        saved.command = 0
        if value & 0xF0 == Command.PULSE:
            if not value & Output.NO_RESET:
                self.reset()
        elif value in _WITH_DATA:
            saved.command = value
        elif value == Command.READ_CONFIG:
            self._answer(saved.config)
        elif value == Command.SELF_TEST:
            saved.status |= Status.SYSTEM
            saved.config |= Config.SYSTEM
            self._answer(SELF_TEST_PASSED)
        elif value in (Command.TEST_KEYBOARD, Command.TEST_AUX):
            self._answer(CLOCK_STUCK_LOW)
        elif value == Command.DISABLE_KEYBOARD:
            saved.config |= Config.KEYBOARD_DISABLED
        elif value == Command.ENABLE_KEYBOARD:
            saved.config &= ~Config.KEYBOARD_DISABLED
        elif value == Command.DISABLE_AUX:
            saved.config |= Config.AUX_DISABLED
        elif value == Command.ENABLE_AUX:
            saved.config &= ~Config.AUX_DISABLED
        elif value == Command.READ_INPUT:
            self._answer(0x80)  # the keyboard is not locked
        elif value == Command.READ_OUTPUT:
            self._answer(saved.output)
        elif value == Command.DISABLE_A20:
            saved.output &= ~Output.A20
        elif value == Command.ENABLE_A20:
            saved.output |= Output.A20

    def _set_output(self, value: int) -> None:
        """A20 is remembered and has no effect: nothing since the 80286 needs addresses to wrap at 1 MiB."""
        if not value & Output.NO_RESET:
            self.reset()
        self.saved.output = value | Output.NO_RESET

    def _answer(self, value: int, why: int = 0) -> None:
        self.saved.data = value
        self.saved.status = self.saved.status & ~Status.TIMEOUT | Status.OUTPUT_FULL | why
        if self.saved.config & Config.KEYBOARD_INTERRUPT:
            self.line.update(1)

    def state(self) -> I8042State:
        return msgspec.structs.replace(self.saved)

    def restore(self, state: object) -> None:
        self.saved = checked(state, I8042State, "the keyboard controller")
        wanted = self.saved.status & Status.OUTPUT_FULL and self.saved.config & Config.KEYBOARD_INTERRUPT
        self.line.update(1 if wanted else 0)


class CommandPort(Device):
    """Port 0x64 of an I8042."""

    def __init__(self, controller: I8042) -> None:
        self.controller = controller

    def read(self, offset: int, size: int) -> int:
        return self.controller.read_status()

    def write(self, offset: int, size: int, value: int) -> None:
        self.controller.write_command(value & 0xFF)


class SystemControlA(Device):
    """Port 0x92 of the PS/2: bit 1 is A20 once more, bit 0 resets the processor when it goes from 0 to 1."""

    RESET = 1
    A20 = 2

    def __init__(self, reset: Callable[[], None]) -> None:
        self.reset = reset
        self.value = self.A20

    def read(self, offset: int, size: int) -> int:
        return self.value

    def write(self, offset: int, size: int, value: int) -> None:
        if value & ~self.value & self.RESET:
            self.reset()
        self.value = value & self.A20
