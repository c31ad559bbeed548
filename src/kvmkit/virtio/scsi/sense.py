"""Status and sense data: why a command did not do what it was asked. Source: SPC-4, 4.5 and 6.39."""

from __future__ import annotations

from enum import IntEnum
from typing import NamedTuple

FIXED_BYTES = 18
DESCRIPTOR_BYTES = 8


class Status(IntEnum):
    GOOD = 0
    CHECK_CONDITION = 2
    BUSY = 8
    TASK_ABORTED = 0x40


class Key(IntEnum):
    NO_SENSE = 0
    NOT_READY = 2
    MEDIUM_ERROR = 3
    HARDWARE_ERROR = 4
    ILLEGAL_REQUEST = 5
    UNIT_ATTENTION = 6
    DATA_PROTECT = 7
    ABORTED_COMMAND = 11
    MISCOMPARE = 14


class Sense(NamedTuple):
    """A sense key with its additional code and qualifier. `information` is a block's address where the code is about
    one; `field` is the byte of the CDB (of the parameters, when not `in_cdb`) that is wrong."""

    key: Key
    code: int
    qualifier: int
    information: int | None = None
    field: int | None = None
    in_cdb: bool = True

    def fixed(self) -> bytes:
        """Fixed format, 18 bytes."""
        data = bytearray(FIXED_BYTES)
        data[0] = 0x70
        data[2] = self.key
        data[7] = FIXED_BYTES - 8
        data[12], data[13] = self.code, self.qualifier
        if self.information is not None and self.information < 1 << 32:
            data[0] |= 0x80
            data[3:7] = self.information.to_bytes(4, "big")
        if self.field is not None:
            data[15] = 0x80 | (0x40 if self.in_cdb else 0)
            data[16:18] = self.field.to_bytes(2, "big")
        return bytes(data)

    def descriptor(self) -> bytes:
        """Descriptor format, without descriptors."""
        return bytes([0x72, self.key, self.code, self.qualifier, 0, 0, 0, 0])


NO_SENSE = Sense(Key.NO_SENSE, 0, 0)
STOPPED = Sense(Key.NOT_READY, 0x04, 0x02)
NO_MEDIUM = Sense(Key.NOT_READY, 0x3A, 0x00)
WRITE_ERROR = Sense(Key.MEDIUM_ERROR, 0x0C, 0x00)
READ_ERROR = Sense(Key.MEDIUM_ERROR, 0x11, 0x00)
TARGET_FAILURE = Sense(Key.HARDWARE_ERROR, 0x44, 0x00)
PARAMETER_LENGTH = Sense(Key.ILLEGAL_REQUEST, 0x1A, 0x00)
INVALID_OPCODE = Sense(Key.ILLEGAL_REQUEST, 0x20, 0x00, field=0)
OUT_OF_RANGE = Sense(Key.ILLEGAL_REQUEST, 0x21, 0x00)
NO_SUCH_UNIT = Sense(Key.ILLEGAL_REQUEST, 0x25, 0x00)
SAVING_UNSUPPORTED = Sense(Key.ILLEGAL_REQUEST, 0x39, 0x00)
REMOVAL_PREVENTED = Sense(Key.ILLEGAL_REQUEST, 0x53, 0x02)
WRONG_MODE_FOR_TRACK = Sense(Key.ILLEGAL_REQUEST, 0x64, 0x00)
MEDIUM_CHANGED = Sense(Key.UNIT_ATTENTION, 0x28, 0x00)
POWER_ON = Sense(Key.UNIT_ATTENTION, 0x29, 0x00)
WAS_RESET = Sense(Key.UNIT_ATTENTION, 0x29, 0x03)
CAPACITY_CHANGED = Sense(Key.UNIT_ATTENTION, 0x2A, 0x09)
UNITS_CHANGED = Sense(Key.UNIT_ATTENTION, 0x3F, 0x0E)
WRITE_PROTECTED = Sense(Key.DATA_PROTECT, 0x27, 0x00)
NO_SPACE = Sense(Key.DATA_PROTECT, 0x27, 0x07)
MISCOMPARE = Sense(Key.MISCOMPARE, 0x1D, 0x00)


def invalid_field(offset: int) -> Sense:
    """Byte `offset` of the CDB says something that is not offered."""
    return Sense(Key.ILLEGAL_REQUEST, 0x24, 0x00, field=offset)


def invalid_parameter(offset: int) -> Sense:
    """Byte `offset` of the parameters."""
    return Sense(Key.ILLEGAL_REQUEST, 0x26, 0x00, field=offset, in_cdb=False)


class CheckCondition(Exception):
    """Raised by a command that ends with sense data."""

    def __init__(self, sense: Sense) -> None:
        super().__init__(f"{sense.key.name} {sense.code:02x}/{sense.qualifier:02x}")
        self.sense = sense
