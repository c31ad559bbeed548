"""A target: which logical unit a command is for, and what can be asked of no unit in particular.

Source: SAM-5, 4.7 (addresses) and 7 (task management); SPC-4, 6.33 (REPORT LUNS).
"""

from __future__ import annotations

import threading

from kvmkit.errors import BadInput

from . import sense
from .sense import invalid_field
from .unit import Answer, LogicalUnit, Op

MOST_TARGETS = 256
MOST_UNITS = 16384
NO_DEVICE = 0x7F
"""Peripheral qualifier 3, device type 31: no unit can be at this address."""
SINGLE_LEVEL = 256


class Targets:
    """The units of one host adapter, by (target, LUN). Any thread may call."""

    def __init__(self) -> None:
        self._units: dict[tuple[int, int], LogicalUnit] = {}
        self._lock = threading.Lock()

    def add(self, target: int, lun: int, unit: LogicalUnit) -> None:
        """Raises BadInput when the address is taken, or none."""
        if not 0 <= target < MOST_TARGETS or not 0 <= lun < MOST_UNITS:
            raise BadInput(f"SCSI target {target}, LUN {lun}: 0 to {MOST_TARGETS - 1}, 0 to {MOST_UNITS - 1} can be")
        with self._lock:
            if (target, lun) in self._units:
                raise BadInput(f"there is a SCSI device at target {target}, LUN {lun}")
            self._units = {**self._units, (target, lun): unit}
        self._changed(target, lun)

    def remove(self, target: int, lun: int) -> LogicalUnit:
        """Raises BadInput when there is none."""
        with self._lock:
            unit = self._units.get((target, lun))
            if unit is None:
                raise BadInput(f"there is no SCSI device at target {target}, LUN {lun}")
            self._units = {address: other for address, other in self._units.items() if address != (target, lun)}
        self._changed(target, lun)
        return unit

    def _changed(self, target: int, lun: int) -> None:
        """The other units of a target tell of its change."""
        for (other, number), unit in self._units.items():
            if other == target and number != lun:
                unit.attention(sense.UNITS_CHANGED)

    def find(self, target: int, lun: int) -> LogicalUnit | None:
        return self._units.get((target, lun))

    def has(self, target: int) -> bool:
        return any(number == target for number, _ in self._units)

    def of(self, target: int) -> list[LogicalUnit]:
        return [unit for (number, _), unit in sorted(self._units.items()) if number == target]

    def all(self) -> dict[tuple[int, int], LogicalUnit]:
        return dict(self._units)

    def execute(self, target: int, lun: int, cdb: bytes, data: bytes = b"") -> Answer | None:
        """Carry out a command; None: there is no such target."""
        unit = self.find(target, lun)
        if cdb[:1] == bytes([Op.REPORT_LUNS]) and self.has(target):
            return self._report_luns(target, cdb.ljust(12, b"\0"))
        if unit is not None:
            return unit.execute(cdb, data)
        if not self.has(target):
            return None
        return self._absent(cdb.ljust(16, b"\0"))

    def _report_luns(self, target: int, cdb: bytes) -> Answer:
        allocated = int.from_bytes(cdb[6:10], "big")
        select = cdb[2]
        if select > 2 or allocated < 16:
            check = invalid_field(2 if select > 2 else 6)
            return Answer(sense.Status.CHECK_CONDITION, sense=check.fixed())
        luns = sorted(lun for number, lun in self._units if number == target) if select != 1 else []
        if select != 1 and 0 not in luns:
            luns.insert(0, 0)
        body = b"".join(encode_lun(lun) for lun in luns)
        return Answer(data=(len(body).to_bytes(4, "big") + bytes(4) + body)[:allocated])

    @staticmethod
    def _absent(cdb: bytes) -> Answer:
        """A target answers for a unit that it does not have: INQUIRY says so, others are refused."""
        if cdb[0] == Op.INQUIRY and not cdb[1] & 1:
            allocated = int.from_bytes(cdb[3:5], "big")
            return Answer(data=(bytes([NO_DEVICE, 0, 6, 0x12, 31]) + bytes(31))[:allocated])
        if cdb[0] == Op.REQUEST_SENSE:
            return Answer(data=sense.NO_SUCH_UNIT.fixed()[: cdb[4]])
        return Answer(sense.Status.CHECK_CONDITION, sense=sense.NO_SUCH_UNIT.fixed())


def encode_lun(lun: int) -> bytes:
    """Eight bytes: peripheral device addressing up to 255, flat space addressing above."""
    first = lun if lun < SINGLE_LEVEL else 0x4000 | lun
    return first.to_bytes(2, "big") + bytes(6)
