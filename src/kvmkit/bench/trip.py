"""What `kvmkit exec` of `true` takes on a VM that runs, beyond the guest's own time for it."""

from __future__ import annotations

import subprocess
import sys
import time
from collections.abc import Callable
from typing import IO, TYPE_CHECKING

import msgspec

from kvmkit.bench.own_home import own_home, started
from kvmkit.bench.processes import RunFailedError
from kvmkit.bench.summary import Spread, shown, spread, table
from kvmkit.errors import KvmkitError
from kvmkit.paths import program

if TYPE_CHECKING:
    from kvmkit.guest.progress import Progress
    from kvmkit.manager.home import Home

SPAWNS = 20
"""Commands that the guest starts by itself in a round; its clock tells hundredths of a second."""
TRIPS = 7
"""Of each kind in a round, of which the median counts."""
_LOOP = (
    f"read a b </proc/uptime; i=0; while [ $i -lt {SPAWNS} ]; do /bin/true; i=$((i+1)); done; read c b </proc/uptime;"
    ' echo "$a $c"'
)
SIDES = {
    "guest": "the guest alone: its shell starts it",
    "api": "from a program: kvmkit.manager.execute",
    "cli": "from a shell: `kvmkit exec`",
    "python": "Python's start alone: python -I -S -c pass",
}


class TripReport(msgspec.Struct):
    """The JSON. Milliseconds, round by round."""

    accel: str
    image: str
    rounds: dict[str, list[float]]
    beyond: dict[str, Spread | None] = {}
    """`api` and `cli` less `guest`, in the same round."""
    failures: list[str] = []


def measure(accel: str, image: str, runs: int, timeout: float, progress: Progress) -> TripReport:
    """`runs` rounds on one VM of `image`. Raises HostError when it can't be started."""
    report = TripReport(accel, image, {name: [] for name in SIDES})
    with own_home():
        progress.step("start a VM")
        with started(accel, image) as home:
            _round(home, timeout)  # its files are in no cache yet
            for number in range(1, runs + 1):
                progress.step(f"round {number} of {runs}")
                try:
                    for side, value in _round(home, timeout).items():
                        report.rounds[side].append(value)
                except KvmkitError as error:
                    report.failures.append(f"round {number}: {error}")
    for side in ("api", "cli"):
        took = zip(report.rounds[side], report.rounds["guest"], strict=True)
        report.beyond[side] = spread([trip - own for trip, own in took])
    return report


def command(name: str) -> list[str]:
    """`kvmkit exec NAME true`, as ./kvmkit comes to it."""
    return [*program(), "exec", name, "true"]


def _round(home: Home, timeout: float) -> dict[str, float]:
    from kvmkit.manager.execute import execute

    def by_api() -> None:
        if status := execute(home, ["true"], timeout=timeout):
            raise RunFailedError(f"true in the guest: status {status}")

    def by_process(words: list[str]) -> None:
        done = subprocess.run(words, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, timeout=timeout, check=False)
        if done.returncode:
            raise RunFailedError(f"{words[-3:]}: status {done.returncode}")

    words = command(home.name)
    found: dict[str, list[float]] = {"api": [], "cli": [], "python": []}
    for _ in range(TRIPS):
        found["api"].append(_timed(by_api))
        found["cli"].append(_timed(lambda: by_process(words)))
        found["python"].append(_timed(lambda: by_process([sys.executable, "-I", "-S", "-c", "pass"])))
    result = {side: sorted(values)[TRIPS // 2] for side, values in found.items()}
    result["guest"] = _guest(home, timeout)
    return result


def _timed(call: Callable[[], None]) -> float:
    began = time.perf_counter()
    call()
    return (time.perf_counter() - began) * 1e3


def _guest(home: Home, timeout: float) -> float:
    """What the guest takes to start `true` and wait for it, ms."""
    from kvmkit.manager.execute import said

    status, told = said(home, ["sh", "-c", _LOOP], most=256, timeout=timeout)
    words = told.split()
    if status or len(words) != 2:
        raise RunFailedError(f"the guest's own time: status {status}")
    return (float(words[1]) - float(words[0])) * 1e3 / SPAWNS


def show(report: TripReport, stream: IO[str]) -> None:
    """The report for people."""
    count = len(report.rounds["guest"])
    print(
        f"`true` in a running VM ({report.image}), engine {report.accel}, {count} rounds;"
        " milliseconds, min / median / max",
        file=stream,
    )
    rows = [
        [what, shown(spread(report.rounds[side]), 1), shown(report.beyond.get(side), 1)] for side, what in SIDES.items()
    ]
    table(["", "took", "beyond the guest's own time"], rows, stream)
    for failure in report.failures:
        print(f"failed: {failure}", file=stream)
