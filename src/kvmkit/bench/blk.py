"""A disk on KVM: kvmkit and QEMU with an iothread, the same polling driver in the guest and the same file, in turn."""

from __future__ import annotations

import json
import os
import sys
import tempfile
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from kvmkit.bench import blk_kernel, kernel, qemu
from kvmkit.bench.processes import Child, RunFailedError, cpu_ns
from kvmkit.bench.summary import Spread, pairs, shown, spread, table
from kvmkit.bus import pc

if TYPE_CHECKING:
    from kvmkit.guest.progress import Progress

MEMORY = 16 << 20
DISK = 64 << 20
CALIBRATION = 400
DEBUG_EXIT_STATUS = 1
QEMU_BASE = 0xFEB00000
"""microvm's first virtio-mmio transport."""


class Point(msgspec.Struct, frozen=True):
    name: str
    way: blk_kernel.Way
    size: int
    depth: int
    sequential: bool = False


POINTS = (
    Point("4 KiB random read, depth 1", "read", 4096, 1),
    Point("4 KiB random read, depth 32", "read", 4096, 32),
    Point("4 KiB random write, depth 1", "write", 4096, 1),
    Point("4 KiB random write, depth 32", "write", 4096, 32),
    Point("128 KiB sequential read, depth 4", "read", 128 << 10, 4, True),
    Point("128 KiB sequential write, depth 4", "write", 128 << 10, 4, True),
)


class Round(msgspec.Struct, frozen=True):
    """Of one run: requests a second, and CPU seconds of all the process's threads for each GB; null: not known."""

    rate: float
    cpu_per_gb: float | None
    exits: float | None = None
    """User-space exits for each request (kvmkit): those of the whole run, its start included."""


class PointReport(msgspec.Struct):
    requests: int
    kvmkit: list[Round | None] = []
    qemu: list[Round | None] = []
    ratio: Spread | None = None
    """kvmkit's rate to QEMU's, round by round."""
    best_ratio: float | None = None


class BlkReport(msgspec.Struct):
    """The JSON."""

    qemu_version: str | None
    points: dict[str, PointReport] = {}
    failures: list[str] = []


def command(side: str, path: str, disk: str, stats: str) -> list[str]:
    if side == "kvmkit":
        options = ["--accel", "kvm", "--memory", f"{MEMORY >> 20}M", "--kernel", path, "--debug-exit", "--disk", disk]
        return [sys.executable, "-m", "kvmkit", "run", *options, "--stats", stats]
    return [
        *qemu.multiboot(MEMORY, path),
        *("-global", "virtio-mmio.force-legacy=false", "-object", "iothread,id=io"),
        *("-blockdev", f"driver=file,node-name=file,filename={disk},aio=io_uring"),
        *("-blockdev", "driver=raw,node-name=disk,file=file"),
        *("-device", "virtio-blk-device,drive=disk,iothread=io,bus=virtio-mmio-bus.0"),
    ]


def time_one(side: str, point: Point, requests: int, directory: Path, timeout: float) -> Round:
    """One run. Raises RunFailedError when it does not come to its end."""
    path, stats = directory / "kernel.elf", directory / "stats.json"
    base = pc.VIRTIO_MMIO if side == "kvmkit" else QEMU_BASE
    path.write_bytes(
        blk_kernel.build(base, point.way, point.size, point.depth, requests, DISK, sequential=point.sequential)
    )
    with Child(command(side, str(path), str(directory / "disk.raw"), str(stats)), timeout, pipe=True) as child:
        start = child.read_line(kernel.START)
        cpu_start = cpu_ns(child.pid)
        end = child.read_line(kernel.END)
        cpu_end = cpu_ns(child.pid)
        status = child.wait()
        if status != DEBUG_EXIT_STATUS:
            raise child.failed(f"exit status {status}")
    cpu = (cpu_end - cpu_start) / (requests * point.size) if cpu_end > cpu_start > 0 else None
    return Round(requests / (end - start) * 1e9, cpu, _memory_exits(stats, requests) if side == "kvmkit" else None)


def _memory_exits(stats: Path, requests: int) -> float | None:
    try:
        exits: dict[str, int] = json.loads(stats.read_bytes())["exits"]
    except (OSError, ValueError, KeyError):
        return None
    return exits.get("memory", exits.get("mmio", 0)) / requests


def measure(seconds: float, runs: int, timeout: float, progress: Progress) -> BlkReport:
    """`runs` rounds of about `seconds` for each side and point. /dev/kvm has to be usable."""
    report = BlkReport(qemu.version())
    sides = ["kvmkit", *(["qemu"] if report.qemu_version is not None else [])]
    with tempfile.TemporaryDirectory(prefix="kvmkit-bench-") as name:
        directory = Path(name)
        (directory / "disk.raw").write_bytes(os.urandom(1 << 20) * (DISK >> 20))
        for point in POINTS:
            progress.step(f"{point.name}: how long one takes")
            try:
                first = time_one("kvmkit", point, CALIBRATION, directory, timeout)
            except RunFailedError as error:
                report.failures.append(f"{point.name}, kvmkit: {error}; not tried again")
                continue
            requests = min(max(int(seconds * first.rate), CALIBRATION), blk_kernel.MOST_REQUESTS)
            found = report.points[point.name] = PointReport(requests)
            for number in range(runs):
                turn = number % len(sides)
                for side in sides[turn:] + sides[:turn]:
                    progress.step(f"{point.name}: round {number + 1} of {runs}, {side}")
                    try:
                        done = time_one(side, point, requests, directory, timeout + 10 * seconds)
                        getattr(found, side).append(done)
                    except RunFailedError as error:
                        getattr(found, side).append(None)
                        report.failures.append(f"{point.name}, {side}, round {number + 1}: {error}")
            summarize(found)
    return report


def summarize(found: PointReport) -> None:
    ours, theirs = ([None if one is None else one.rate for one in side] for side in (found.kvmkit, found.qemu))
    if theirs:
        found.ratio = pairs(ours, theirs)
        best = [max((rate for rate in side if rate), default=0.0) for side in (ours, theirs)]
        found.best_ratio = best[0] / best[1] if all(best) else None


def show(report: BlkReport, stream: IO[str]) -> None:
    """The report for people."""
    peer = f" beside QEMU {report.qemu_version} with an iothread" if report.qemu_version is not None else ""
    print(
        f"a disk on KVM{peer}: a polling driver in ring 3, one file in the page cache; min / median / max", file=stream
    )
    rows = []
    for name, found in report.points.items():
        for side, title in (("kvmkit", "kvmkit"), ("qemu", "QEMU")):
            done = [one for one in getattr(found, side) if one is not None]
            if not done:
                continue
            exits = [one.exits for one in done if one.exits is not None]
            rows.append(
                [
                    f"{name}, {title}",
                    shown(spread([one.rate for one in done])),
                    shown(spread([one.cpu_per_gb for one in done if one.cpu_per_gb is not None]), 2),
                    f"{min(exits):.3f}" if exits else "",
                ]
            )
    table(["", "requests/s", "CPU s per GB", "exits per request"], rows, stream)
    for name, found in report.points.items():
        if found.ratio is not None and found.best_ratio is not None:
            text = f"{shown(found.ratio, 2)} in pairs, {found.best_ratio:.2f} best to best"
            print(f"{name}: kvmkit / QEMU {text}", file=stream)
    if report.qemu_version is None:
        print(qemu.MISSING, file=stream)
    for failure in report.failures:
        print(f"failed: {failure}", file=stream)
