"""What a run cost: moments since its start, exits by reason, memory."""

from __future__ import annotations

import time
from collections import Counter
from collections.abc import Mapping

import msgspec

MOMENTS = ("first_instruction", "kernel_first_line", "user_space", "command_end")


class Report(msgspec.Struct, kw_only=True):
    """The JSON of --stats. Times are milliseconds since the start; null: it did not come to that."""

    accel: str = ""
    started_ns: int = 0
    """The start, on the host's monotonic clock: who started this process can put the times on its own scale."""
    first_instruction_ms: float | None = None
    kernel_first_line_ms: float | None = None
    user_space_ms: float | None = None
    command_end_ms: float | None = None
    exits: dict[str, int] = {}
    peak_rss_bytes: int = 0


class Stats:
    """Collects a Report. `started_ns` is time.monotonic_ns() when the user's command began."""

    def __init__(self, started_ns: int | None = None) -> None:
        self.started_ns = time.monotonic_ns() if started_ns is None else started_ns
        self.accel = ""
        self.exits: Counter[str] = Counter()
        self._moments: dict[str, int] = {}

    def mark(self, moment: str, at_ns: int | None = None) -> None:
        """Note that one of MOMENTS is now (or was at `at_ns`). Only the first time counts."""
        if moment not in MOMENTS:
            raise ValueError(f"no such moment: {moment}")
        self._moments.setdefault(moment, time.monotonic_ns() if at_ns is None else at_ns)

    def add_exits(self, exits: Mapping[str, int]) -> None:
        self.exits.update({reason: count for reason, count in exits.items() if count})

    def report(self, running: Mapping[str, int] | None = None) -> Report:
        """The numbers of now; `running` are exits of vCPUs that have not been added."""
        times = {f"{name}_ms": (at - self.started_ns) / 1e6 for name, at in self._moments.items()}
        exits = self.exits + Counter(running or {})
        return Report(
            accel=self.accel,
            started_ns=self.started_ns,
            exits=dict(sorted(exits.items())),
            peak_rss_bytes=peak_rss(),
            **times,
        )

    def json(self) -> bytes:
        return msgspec.json.format(msgspec.json.encode(self.report()), indent=2) + b"\n"


def peak_rss() -> int:
    """The most memory this process has had resident, guest RAM included, in bytes (VmHWM)."""
    try:
        with open("/proc/self/status", encoding="ascii", errors="replace") as status:
            for line in status:
                if line.startswith("VmHWM:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError):
        pass
    return 0
