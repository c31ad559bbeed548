"""A flash chip for what firmware remembers: its variables, Secure Boot's keys among them.

Reading is plain; writing goes by Intel's commands, of which a firmware for virtual machines uses these. A program
or erase is done when its last byte has been written. Source: JEDEC JEP137 (command set 0001h), Intel 28F128J3A data
sheet; OVMF finds the chip by its status register, OvmfPkg/QemuFlashFvbServicesRuntimeDxe.
"""

from __future__ import annotations

from enum import IntEnum
from typing import Annotated, Protocol

import msgspec
from msgspec import Meta

from kvmkit.bus import Device
from kvmkit.devices.saved import checked

BLOCK = 4096
"""Bytes that are erased at once, to ones."""
READY = 0x80
MANUFACTURER, CHIP = 0x89, 0x18


class Command(IntEnum):
    PROGRAM = 0x10
    ERASE = 0x20
    PROGRAM_TOO = 0x40
    CLEAR_STATUS = 0x50
    LOCK = 0x60
    READ_STATUS = 0x70
    READ_IDENTITY = 0x90
    CONFIRM = 0xD0
    READ_ARRAY = 0xFF


WITH_ARGUMENT = (Command.PROGRAM, Command.PROGRAM_TOO, Command.ERASE, Command.LOCK)
KEPT = (*WITH_ARGUMENT, Command.READ_STATUS, Command.READ_IDENTITY)
"""Commands after which the chip does not read as memory; any other makes it that again."""


class Bytes(Protocol):
    """What the chip holds: a map of a file, say. Its length is a multiple of BLOCK."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes | bytearray: ...
    def __setitem__(self, key: slice, value: bytes, /) -> None: ...


class FlashState(msgspec.Struct, forbid_unknown_fields=True):
    """`command` is the one in force, `waiting` whether its argument is still to come."""

    command: Annotated[int, Meta(ge=0, le=0xFF)] = Command.READ_ARRAY
    waiting: bool = False
    status: Annotated[int, Meta(ge=0, le=0xFF)] = READY


class Flash(Device):
    """The chip over `data`, which it changes in place."""

    def __init__(self, data: Bytes) -> None:
        self._data = data
        self._command = int(Command.READ_ARRAY)
        self._waiting = False
        self._status = READY

    def read(self, offset: int, size: int) -> int:
        if self._command == Command.READ_ARRAY:
            return int.from_bytes(self._data[offset : offset + size], "little")
        if self._command == Command.READ_IDENTITY:
            return (MANUFACTURER, CHIP)[offset & 1]
        return self._status

    def write(self, offset: int, size: int, value: int) -> None:
        if self._waiting:
            self._waiting = False
            self._argument(offset, size, value)
            return
        command = value & 0xFF
        if command == Command.CLEAR_STATUS:
            self._status = 0
        self._command = command if command in KEPT else int(Command.READ_ARRAY)
        self._waiting = command in WITH_ARGUMENT

    def _argument(self, offset: int, size: int, value: int) -> None:
        if self._command in (Command.PROGRAM, Command.PROGRAM_TOO):
            size = min(size, len(self._data) - offset)
            self._data[offset : offset + size] = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        elif value & 0xFF != Command.CONFIRM:
            self._command = int(Command.READ_ARRAY)
            return
        elif self._command == Command.ERASE:
            start = offset // BLOCK * BLOCK
            self._data[start : start + BLOCK] = b"\xff" * BLOCK
        self._status |= READY
        self._command = int(Command.READ_STATUS)

    def state(self) -> FlashState:
        return FlashState(command=self._command, waiting=self._waiting, status=self._status)

    def restore(self, state: FlashState) -> None:
        """Raises BadInput for a state that can't be."""
        found = checked(state, FlashState, "flash")
        self._command, self._waiting, self._status = found.command, found.waiting, found.status
