"""A flash chip for what firmware remembers: its variables, Secure Boot's keys among them.

The guest reads it as memory, without an exit. Writing goes by Intel's commands, of which firmware for virtual machines
uses these; a program or erase is done when its last byte has been written, and the chip reads as memory again: whoever
wants its status asks for it. Then that is put where the guest reads, until it asks for memory.

Source: JEDEC JEP137 (command set 0001h), Intel 28F128J3A data sheet; OVMF tells the chip by its status register,
OvmfPkg/QemuFlashFvbServicesRuntimeDxe.
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
SHOWN = (Command.READ_STATUS, Command.READ_IDENTITY)
"""Commands after which the chip does not read as memory; any other makes it that again."""


class Bytes(Protocol):
    """What can be changed in place: a map of a file, say."""

    def __len__(self) -> int: ...
    def __getitem__(self, key: slice, /) -> bytes | bytearray: ...
    def __setitem__(self, key: slice, value: bytes, /) -> None: ...


class FlashState(msgspec.Struct, forbid_unknown_fields=True):
    """`command` is the one in force, `waiting` whether its argument is still to come."""

    command: Annotated[int, Meta(ge=0, le=0xFF)] = Command.READ_ARRAY
    waiting: bool = False
    status: Annotated[int, Meta(ge=0, le=0xFF)] = READY


class Flash(Device):
    """The chip over `data`, whose length is a multiple of BLOCK. `view` begins with what the guest reads of it."""

    def __init__(self, data: Bytes, view: Bytes) -> None:
        self._data = data
        self._view = view
        self._command = int(Command.READ_ARRAY)
        self._waiting = False
        self._status = READY

    def read(self, offset: int, size: int) -> int:
        return int.from_bytes(self._view[offset : offset + size], "little")

    def write(self, offset: int, size: int, value: int) -> None:
        if self._waiting:
            self._waiting = False
            self._argument(offset, size, value)
            return
        command = value & 0xFF
        if command == Command.CLEAR_STATUS:
            self._status = 0
        self._waiting = command in WITH_ARGUMENT
        self._show(command if command in SHOWN or self._waiting else int(Command.READ_ARRAY))

    def _argument(self, offset: int, size: int, value: int) -> None:
        command, start, content = self._command, offset, b""
        if command in (Command.PROGRAM, Command.PROGRAM_TOO):
            size = min(size, len(self._data) - offset)
            content = (value & ((1 << 8 * size) - 1)).to_bytes(size, "little")
        elif command == Command.ERASE and value & 0xFF == Command.CONFIRM:
            start = offset // BLOCK * BLOCK
            content = b"\xff" * BLOCK
        for each in (self._data, self._view):
            each[start : start + len(content)] = content
        self._status |= READY
        self._show(int(Command.READ_ARRAY))

    def _show(self, command: int) -> None:
        """Put in the guest's view what it reads after this command."""
        if command == Command.READ_STATUS:
            self._fill(bytes([self._status]) * len(self._data))
        elif command == Command.READ_IDENTITY:
            self._fill(bytes([MANUFACTURER, CHIP]) * (len(self._data) // 2))
        elif self._command in SHOWN:
            self._fill(bytes(self._data[:]))
        self._command = command

    def _fill(self, content: bytes) -> None:
        self._view[: len(content)] = content

    def state(self) -> FlashState:
        return FlashState(command=self._command, waiting=self._waiting, status=self._status)

    def restore(self, state: FlashState) -> None:
        """Raises BadInput for a state that can't be."""
        found = checked(state, FlashState, "flash")
        self._waiting, self._status = found.waiting, found.status
        self._fill(bytes(self._data[:]))
        self._command = int(Command.READ_ARRAY)
        self._show(found.command)
