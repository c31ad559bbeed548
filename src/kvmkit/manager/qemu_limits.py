"""QEMU's throttling (docs/throttle.txt) as rate limits of ours, and back."""

from __future__ import annotations

from typing import Any

from kvmkit.machine.limits import Limits
from kvmkit.manager.qemu_options import Pairs, refuse

# What is limited for reads and writes alone has no counterpart.
HALVES = tuple(
    name
    for what in ("bps", "iops")
    for half, short in (("read", "rd"), ("write", "wr"))
    for tail in ("", "-max", "-max-length")
    for name in (f"throttling.{what}-{half}{tail}", f"{what}_{short}{tail.replace('-', '_')}")
)


def limits(option: str, pairs: Pairs, prefix: str = "throttling.") -> dict[str, float]:
    """Fields of Limits. What may come at once is QEMU's `-max`, a second, for `-max-length` seconds (1)."""
    found: dict[str, float] = {}
    for key in HALVES:
        if pairs.number(key, 0, 1 << 62):
            raise refuse(f"-{option} {key}", f"its limits are for reads and writes together: throttling.{_total(key)}")
    for what in ("bps", "iops"):
        numbers = []
        for tail in ("", "-max", "-max-length"):
            short = pairs.number(f"{what}{tail.replace('-', '_')}", 0, 1 << 62)
            long = pairs.number(f"{prefix}{what}-total{tail}", 0, 1 << 62)
            numbers.append(short if long is None else long)
        rate, most, length = numbers
        if rate:
            found[what] = float(rate)
            if most:
                found[f"{what}_burst"] = float(most * (length or 1))
    if pairs.get("group") or pairs.get("throttling.group"):
        raise refuse(f"-{option} throttling.group", "each disk has limits of its own")
    return found


def _total(key: str) -> str:
    return "iops-total" if "iops" in key else "bps-total"


def told(limits: Limits) -> list[tuple[str, int]]:
    """(key, value) of each limit, as -drive has them."""
    found = []
    for what in ("bps", "iops"):
        if rate := round(getattr(limits, what)):
            found.append((f"{what}-total", rate))
            if burst := round(getattr(limits, f"{what}_burst")):
                found.append((f"{what}-total-max", burst))
    return found


def plain(limits: Limits) -> tuple[dict[str, Any], list[str]]:
    """(the fields as QEMU can have them, what of them it can't): a burst there is at least what one second brings."""
    fields: dict[str, Any] = {key: getattr(limits, key) for key in Limits.__struct_fields__}
    left = []
    for what in ("bps", "iops"):
        burst = f"{what}_burst"
        if 0 < fields[burst] < fields[what]:
            left.append(f"{burst}={fields[burst]:g}: a burst is what a second brings, or more")
            fields[burst] = 0.0
    return fields, left
