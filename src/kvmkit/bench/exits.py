"""Exits to user space on KVM: a loop that only enters again, kvmkit, and QEMU, with the same guest, in turn."""

from __future__ import annotations

import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from kvmkit.bench import kernel, qemu
from kvmkit.bench.processes import Child, RunFailedError, cpu_ns, take_turns
from kvmkit.bench.summary import Spread, pairs, shown, spread, table

if TYPE_CHECKING:
    from kvmkit.guest.progress import Progress

MEMORY = 16 << 20
CALIBRATION = 2000
DEBUG_EXIT_STATUS = 1
KINDS = {"port": "a port of nobody's", "device": "a serial port's register", "memory": "memory of nobody's"}


class Round(msgspec.Struct, frozen=True):
    """Nanoseconds for one exit: by the clock on the wall, and of CPU time of all the process's threads.

    `cpu_ns` is null when the process had ended before it could be asked.
    """

    wall_ns: float
    cpu_ns: float | None


class KindReport(msgspec.Struct):
    """`exits` exits a round. Each side's list goes round by round; null: that run failed."""

    exits: int
    bare: list[Round | None] = []
    kvmkit: list[Round | None] = []
    qemu: list[Round | None] = []
    summary: dict[str, Spread | None] = {}
    """`SIDE_rate`: exits a second; `SIDE_added_ns`, `SIDE_added_cpu_ns`: over the bare loop's, round by round;
    `ratio`, `cpu_ratio`: kvmkit's exits a second, or a second of CPU time, to QEMU's, round by round."""
    best_ratio: float | None = None
    """kvmkit's best rate to QEMU's best."""
    best_cpu_ratio: float | None = None
    best_added_ns: dict[str, float] = {}
    """By side: its shortest time for an exit less the bare loop's shortest."""
    best_added_cpu_ns: dict[str, float] = {}


class ExitsReport(msgspec.Struct):
    """The JSON."""

    qemu_version: str | None
    kinds: dict[str, KindReport] = {}
    failures: list[str] = []


def command(side: str, path: str) -> list[str]:
    """How `side` runs the kernel at `path`."""
    if side == "bare":
        return [sys.executable, "-m", "kvmkit.bench.bare_process", path]
    if side == "kvmkit":
        options = ["--accel", "kvm", "--memory", f"{MEMORY >> 20}M", "--kernel", path, "--debug-exit"]
        return [sys.executable, "-m", "kvmkit", "run", *options]
    return qemu.multiboot(MEMORY, path)


def time_one(side: str, path: str, exits: int, timeout: float) -> Round:
    """One run. Raises RunFailedError when it does not come to its end."""
    with Child(command(side, path), timeout, pipe=True) as child:
        start = child.read_line(kernel.START)
        cpu_start = cpu_ns(child.pid)
        end = child.read_line(kernel.END)
        cpu_end = cpu_ns(child.pid)
        status = child.wait()
        if status != (0 if side == "bare" else DEBUG_EXIT_STATUS):
            raise child.failed(f"exit status {status}")
        return Round((end - start) / exits, (cpu_end - cpu_start) / exits if cpu_end > cpu_start > 0 else None)


def measure(seconds: float, runs: int, timeout: float, progress: Progress) -> ExitsReport:
    """`runs` rounds of about `seconds` for each side and kind of exit. /dev/kvm has to be usable."""
    report = ExitsReport(qemu.version())
    sides = ["bare", "kvmkit", *(["qemu"] if report.qemu_version is not None else [])]
    with tempfile.TemporaryDirectory(prefix="kvmkit-bench-") as directory:
        for kind in kernel.KINDS:
            path = Path(directory) / f"{kind}.elf"
            path.write_bytes(kernel.build(kind, CALIBRATION))
            progress.step(f"{KINDS[kind]}: how long one takes")
            try:
                first = time_one("bare", str(path), CALIBRATION, timeout)
            except RunFailedError as error:
                report.failures.append(f"{kind}, bare loop: {error}; not tried again")
                continue
            exits = min(max(int(seconds * 1e9 / first.wall_ns), CALIBRATION), kernel.MAX_EXITS)
            path.write_bytes(kernel.build(kind, exits))
            found = report.kinds[kind] = KindReport(exits)
            take_turns(
                *(kind, sides, runs, time_one, str(path), exits, timeout + 10 * seconds),
                into=found,
                failures=report.failures,
                progress=progress,
                title=KINDS[kind],
            )
            _summarize(found)
    return report


def _summarize(found: KindReport) -> None:
    sides = {"bare": found.bare, "kvmkit": found.kvmkit, "qemu": found.qemu}
    wall: dict[str, list[float | None]] = {
        side: [None if one is None else one.wall_ns for one in rounds] for side, rounds in sides.items() if rounds
    }
    cpu: dict[str, list[float | None]] = {
        side: [None if one is None else one.cpu_ns for one in rounds] for side, rounds in sides.items() if rounds
    }
    for side, times in wall.items():
        found.summary[f"{side}_rate"] = spread([1e9 / time for time in times if time is not None])
    for times_of, what, best in (
        (wall, "added_ns", found.best_added_ns),
        (cpu, "added_cpu_ns", found.best_added_cpu_ns),
    ):
        for side, times in times_of.items():
            if side == "bare":
                continue
            together = [(a, b) for a, b in zip(times, times_of["bare"], strict=True) if a is not None and b is not None]
            found.summary[f"{side}_{what}"] = spread([a - b for a, b in together])
            if together:
                best[side] = min(a for a, _ in together) - min(b for _, b in together)
    if "qemu" in wall:
        # Ratios of times are upside down those of rates.
        found.summary["ratio"] = pairs(wall["qemu"], wall["kvmkit"])
        found.summary["cpu_ratio"] = pairs(cpu["qemu"], cpu["kvmkit"])
        found.best_ratio = _best(wall)
        found.best_cpu_ratio = _best(cpu)


def _best(times: dict[str, list[float | None]]) -> float | None:
    ours, theirs = ([time for time in times[side] if time] for side in ("kvmkit", "qemu"))
    return min(theirs) / min(ours) if ours and theirs else None


def show(report: ExitsReport, stream: IO[str]) -> None:
    """The report for people."""
    with_qemu = report.qemu_version is not None
    peer = f", QEMU {report.qemu_version}" if with_qemu else ""
    rounds = max((len(found.bare) for found in report.kinds.values()), default=0)
    print(f"writes of a ring-3 guest that leave to user space, {rounds} rounds{peer}; min / median / max", file=stream)
    names = {"bare": "bare loop", "kvmkit": "kvmkit", "qemu": "QEMU"}
    rows = []
    for kind, found in report.kinds.items():
        for side, name in names.items():
            done = [one for one in getattr(found, side) if one is not None]
            if not done:
                continue
            best = found.best_added_cpu_ns.get(side)
            rows.append(
                [
                    f"{KINDS[kind]}, {name}",
                    shown(found.summary[f"{side}_rate"]),
                    shown(spread([one.cpu_ns for one in done if one.cpu_ns is not None])),
                    "" if best is None else f"{best:+,.0f}",
                ]
            )
    table(["write to", "exits/s", "CPU ns per exit", "best over bare's best"], rows, stream)
    for kind, found in report.kinds.items():
        for what, ratio, best in (
            ("exits/s", found.summary.get("ratio"), found.best_ratio),
            ("exits/s of CPU time", found.summary.get("cpu_ratio"), found.best_cpu_ratio),
        ):
            if ratio is not None and best is not None:
                text = f"{shown(ratio, 2)} in pairs, {best:.2f} best to best"
                print(f"{KINDS[kind]}: kvmkit / QEMU, {what}: {text}", file=stream)
    if not with_qemu:
        print(qemu.MISSING, file=stream)
    for failure in report.failures:
        print(f"failed: {failure}", file=stream)
