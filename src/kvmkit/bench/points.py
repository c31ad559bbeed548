"""A device on KVM, measured at a few points: kvmkit and QEMU in turn, with the same polling driver in the guest."""

from __future__ import annotations

import json
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import IO, TYPE_CHECKING, Protocol, TypeVar

import msgspec

from kvmkit.bench import kernel, qemu
from kvmkit.bench.processes import Child, RunFailedError, cpu_ns, take_turns
from kvmkit.bench.summary import Spread, pairs, shown, spread, table
from kvmkit.bus import pc

if TYPE_CHECKING:
    from kvmkit.guest.progress import Progress

DEBUG_EXIT_STATUS = 1
BASES = {"kvmkit": pc.VIRTIO_MMIO, "qemu": 0xFEB00000}
"""Each side's first virtio-mmio transport; QEMU's is microvm's."""


class Point(Protocol):
    @property
    def name(self) -> str: ...


AnyPoint = TypeVar("AnyPoint", bound=Point)
TimeOne = Callable[[str, AnyPoint, int, Path, float], "Round"]
"""One run of a side ("kvmkit" or "qemu"): so many requests, files in a directory, a timeout. Raises RunFailedError."""


class Round(msgspec.Struct, frozen=True):
    """Of one run: requests a second, and CPU seconds of all the process's threads for each GB; null: not known."""

    rate: float
    cpu_per_gb: float | None
    exits: float | None = None
    """User-space exits for each request (kvmkit): those of the whole run, its start included."""


class PointReport(msgspec.Struct):
    """`requests` of each round; 0: a round has a time instead."""

    requests: int
    kvmkit: list[Round | None] = []
    qemu: list[Round | None] = []
    ratio: Spread | None = None
    """kvmkit's rate to QEMU's, round by round."""
    best_ratio: float | None = None


class PointsReport(msgspec.Struct):
    """The JSON. A network card's requests are frames."""

    qemu_version: str | None
    points: dict[str, PointReport] = {}
    failures: list[str] = []


def timed(command: Sequence[str], requests: int, size: int, stats: Path | None, timeout: float) -> Round:
    """Run a VM whose driver moves `requests` of `size` bytes. `stats`: where kvmkit writes its counts."""
    with Child(command, timeout, pipe=True) as child:
        start = child.read_line(kernel.START)
        cpu_start = cpu_ns(child.pid)
        end = child.read_line(kernel.END)
        cpu_end = cpu_ns(child.pid)
        status = child.wait()
        if status != DEBUG_EXIT_STATUS:
            raise child.failed(f"exit status {status}")
    cpu = (cpu_end - cpu_start) / (requests * size) if cpu_end > cpu_start > 0 else None
    return Round(requests / (end - start) * 1e9, cpu, _memory_exits(stats, requests) if stats is not None else None)


def _memory_exits(stats: Path, requests: int) -> float | None:
    try:
        exits: dict[str, int] = json.loads(stats.read_bytes())["exits"]
    except (OSError, ValueError, KeyError):
        return None
    return exits.get("memory", exits.get("mmio", 0)) / requests


def measure(
    points: Sequence[AnyPoint],
    time_one: TimeOne[AnyPoint],
    seconds: float,
    runs: int,
    timeout: float,
    progress: Progress,
    *,
    calibration: int,
    most: int,
    slack: float,
    prepare: Callable[[Path], object] | None = None,
) -> PointsReport:
    """`runs` rounds of about `seconds` for each side and point; `slack` times as long may go by beyond `timeout`.

    A run of `calibration` requests tells how many a round has, `most` at the most. `prepare` is given the directory.
    """
    report = PointsReport(qemu.version())
    sides = ["kvmkit", *(["qemu"] if report.qemu_version is not None else [])]
    with tempfile.TemporaryDirectory(prefix="kvmkit-bench-") as name:
        directory = Path(name)
        if prepare is not None:
            prepare(directory)
        for point in points:
            progress.step(f"{point.name}: how long one takes")
            try:
                first = time_one("kvmkit", point, calibration, directory, timeout)
            except RunFailedError as error:
                report.failures.append(f"{point.name}, kvmkit: {error}; not tried again")
                continue
            requests = min(max(int(seconds * first.rate), calibration), most)
            found = report.points[point.name] = PointReport(requests)
            take_turns(
                *(point.name, sides, runs, time_one, point, requests, directory, timeout + slack * seconds),
                into=found,
                failures=report.failures,
                progress=progress,
            )
            summarize(found)
    return report


def summarize(found: PointReport) -> None:
    """Fill in the ratios."""
    ours, theirs = ([None if one is None else one.rate for one in side] for side in (found.kvmkit, found.qemu))
    if theirs:
        found.ratio = pairs(ours, theirs)
        best = [max((rate for rate in side if rate), default=0.0) for side in (ours, theirs)]
        found.best_ratio = best[0] / best[1] if all(best) else None


def show(
    report: PointsReport,
    stream: IO[str],
    title: str,
    request: str,
    *,
    digits: int,
    megabytes: Callable[[str, float], str] | None = None,
) -> None:
    """The report for people. `digits`: of exits per request. `megabytes`: MB/s at a point, by its requests a second."""
    print(title, file=stream)
    rows = []
    for name, found in report.points.items():
        for side, shown_side in (("kvmkit", "kvmkit"), ("qemu", "QEMU")):
            done = [one for one in getattr(found, side) if one is not None]
            if not done:
                continue
            exits = [one.exits for one in done if one.exits is not None]
            rates = spread([one.rate for one in done])
            rows.append(
                [
                    f"{name}, {shown_side}",
                    shown(rates),
                    *([megabytes(name, rates.median)] if megabytes is not None and rates is not None else []),
                    shown(spread([one.cpu_per_gb for one in done if one.cpu_per_gb is not None]), 2),
                    f"{min(exits):.{digits}f}" if exits else "",
                ]
            )
    heads = ["", f"{request}s/s", *(["MB/s"] if megabytes is not None else []), "CPU s per GB", f"exits per {request}"]
    table(heads, rows, stream)
    for name, found in report.points.items():
        if found.ratio is not None and found.best_ratio is not None:
            text = f"{shown(found.ratio, 2)} in pairs, {found.best_ratio:.2f} best to best"
            print(f"{name}: kvmkit / QEMU {text}", file=stream)
    if report.qemu_version is None:
        print(qemu.MISSING, file=stream)
    for failure in report.failures:
        print(f"failed: {failure}", file=stream)
