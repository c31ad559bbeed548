"""A disk on KVM: kvmkit and QEMU with an iothread, the same polling driver in the guest and the same file, in turn."""

from __future__ import annotations

import os
import sys
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from kvmkit.bench import blk_kernel, points, qemu
from kvmkit.bench.points import PointsReport, Round

if TYPE_CHECKING:
    from kvmkit.guest.progress import Progress

MEMORY = 16 << 20
DISK = 64 << 20
CALIBRATION = 400


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
    path.write_bytes(
        blk_kernel.build(
            points.BASES[side], point.way, point.size, point.depth, requests, DISK, sequential=point.sequential
        )
    )
    line = command(side, str(path), str(directory / "disk.raw"), str(stats))
    return points.timed(line, requests, point.size, stats if side == "kvmkit" else None, timeout)


def measure(seconds: float, runs: int, timeout: float, progress: Progress) -> PointsReport:
    """`runs` rounds of about `seconds` for each side and point. /dev/kvm has to be usable."""
    return points.measure(
        *(POINTS, time_one, seconds, runs, timeout, progress),
        calibration=CALIBRATION,
        most=blk_kernel.MOST_REQUESTS,
        slack=10,
        prepare=lambda directory: (directory / "disk.raw").write_bytes(os.urandom(1 << 20) * (DISK >> 20)),
    )


def show(report: PointsReport, stream: IO[str]) -> None:
    """The report for people."""
    peer = f" beside QEMU {report.qemu_version} with an iothread" if report.qemu_version is not None else ""
    title = f"a disk on KVM{peer}: a polling driver in ring 3, one file in the page cache; min / median / max"
    points.show(report, stream, title, "request", digits=3)
