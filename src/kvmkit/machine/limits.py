"""Rate limits as a user gives them: bps=, iops= and their bursts."""

from __future__ import annotations

import re
from typing import TYPE_CHECKING, Any

import msgspec

from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.virtio.device import VirtioDevice

KEYS = ("bps", "iops", "bps_burst", "iops_burst")
MOST = 1e15
_NUMBER = re.compile(r"(\d+(?:\.\d+)?)([kmgt]?)", re.IGNORECASE | re.ASCII)
_UNITS = {"": 1, "k": 1 << 10, "m": 1 << 20, "g": 1 << 30, "t": 1 << 40}


class Limits(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a device may move on average: bytes and requests a second, and how much of each at once. 0: no limit.

    A burst of 0 is what a tenth of a second brings.
    """

    bps: float = 0
    iops: float = 0
    bps_burst: float = 0
    iops_burst: float = 0

    @property
    def limited(self) -> bool:
        return bool(self.bps or self.iops)

    def told(self) -> str:
        """In a few words."""
        shown = [f"{key}={getattr(self, key):g}" for key in KEYS if getattr(self, key)]
        return " ".join(shown) or "no limit"

    def check_limits(self, where: str) -> None:
        """Raise BadInput, in one line, for what can't be."""
        for key in KEYS:
            if not 0 <= getattr(self, key) <= MOST:
                raise BadInput(
                    f"{where}: {key}={getattr(self, key):g}: a rate is a number from 0 (no limit) to {MOST:g}"
                )

    def limit(self, device: VirtioDevice) -> None:
        """Have `device` keep to it, also while it works."""
        device.set_limit(
            bytes=self.bps, operations=self.iops, byte_burst=self.bps_burst, operation_burst=self.iops_burst
        )


def parse_limit(where: str, option: str) -> tuple[str, float] | None:
    """(key, rate) of `bps=10M` or `iops=500`; None: another option. Raises BadInput. M is 2^20."""
    key, equals, value = option.partition("=")
    if key not in KEYS or not equals:
        return None
    match = _NUMBER.fullmatch(value)
    if match is None or len(value) > 20:
        raise BadInput(f"{where}: {option}: give a number a second, such as bps=10M or iops=500; 0 is no limit")
    return key, float(match[1]) * _UNITS[match[2].lower()]


def parse_limits(where: str, text: str) -> Limits:
    """Limits of `bps=10M,iops=500`. Raises BadInput."""
    given: dict[str, Any] = {}
    for option in text.split(","):
        found = parse_limit(where, option)
        if found is None:
            raise BadInput(f"{where}: no option {option!r}; there are {', '.join(f'{key}=' for key in KEYS)}")
        given[found[0]] = found[1]
    limits = Limits(**given)
    limits.check_limits(where)
    return limits
