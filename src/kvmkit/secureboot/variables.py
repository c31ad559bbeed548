"""One UEFI variable: its name, whose it is, what may be done with it, and its data.

Source: UEFI 2.10, 8.2; edk2's MdeModulePkg/Include/Guid/VariableFormat.h.
"""

from __future__ import annotations

import struct
from datetime import UTC, datetime
from typing import NamedTuple
from uuid import UUID

from kvmkit.secureboot import guids

NON_VOLATILE = 1 << 0
BOOT_SERVICE = 1 << 1
RUNTIME = 1 << 2
TIME_AUTHENTICATED = 1 << 5

ATTRIBUTES = {
    NON_VOLATILE: "NV",
    BOOT_SERVICE: "BS",
    RUNTIME: "RT",
    1 << 3: "HW",  # a hardware error record
    1 << 4: "AW",  # authenticated by a counter, which is out of use
    TIME_AUTHENTICATED: "AT",
    1 << 6: "APPEND",
}
"""Short names, as the UEFI shell's dmpstore has them."""

NO_TIME = bytes(16)
_TIME = struct.Struct("<HBBBBBxIhBx")


class Variable(NamedTuple):
    name: str
    guid: UUID
    attributes: int = NON_VOLATILE | BOOT_SERVICE
    data: bytes = b""
    time: bytes = NO_TIME
    """EFI_TIME, 16 bytes; zeros for a variable that is not authenticated by time."""
    monotonic_count: int = 0
    key_index: int = 0

    @property
    def key(self) -> tuple[str, UUID]:
        """What it is known by in a store."""
        return self.name, self.guid

    @property
    def when(self) -> datetime | None:
        """Its time in UTC; None where there is none."""
        return moment(self.time)

    def attribute_names(self) -> list[str]:
        """Such as NV, BS, RT, AT; a bit without a name by its value."""
        bits = [1 << bit for bit in range(32) if self.attributes & 1 << bit]
        return [ATTRIBUTES.get(bit, f"{bit:#x}") for bit in bits]


def moment(time: bytes) -> datetime | None:
    """What EFI_TIME, 16 bytes, says; None where it says nothing, or what no calendar has."""
    year, month, day, hour, minute, second, nanoseconds, _zone, _daylight = _TIME.unpack(time)
    try:
        return datetime(year, month, day, hour, minute, second, nanoseconds // 1000, UTC)
    except ValueError:
        return None


def time_of(when: datetime) -> bytes:
    """EFI_TIME of a moment in UTC, 16 bytes."""
    day, clock = (when.year, when.month, when.day), (when.hour, when.minute, when.second)
    return _TIME.pack(*day, *clock, when.microsecond * 1000, 0, 0)


_SIGNED = NON_VOLATILE | BOOT_SERVICE | RUNTIME | TIME_AUTHENTICATED

PK = Variable("PK", guids.GLOBAL, _SIGNED)
KEK = Variable("KEK", guids.GLOBAL, _SIGNED)
DB = Variable("db", guids.IMAGE_SECURITY, _SIGNED)
DBX = Variable("dbx", guids.IMAGE_SECURITY, _SIGNED)
SECURE_BOOT_ENABLE = Variable("SecureBootEnable", guids.SECURE_BOOT_ENABLE)
CUSTOM_MODE = Variable("CustomMode", guids.CUSTOM_MODE)
"""Secure Boot's variables, empty: the platform key, who may change db and dbx, what may start, what may not; and the
two by which OVMF keeps whether Secure Boot is on, and whether its menu lets keys be changed."""

DATABASES = (PK, KEK, DB, DBX)
