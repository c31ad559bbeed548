"""A network card on KVM: kvmkit and QEMU, each on a UNIX stream socket, the same polling driver in the guest."""

from __future__ import annotations

import json
import os
import socket
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from kvmkit.bench import kernel, net_kernel, qemu
from kvmkit.bench.blk import DEBUG_EXIT_STATUS, QEMU_BASE, PointReport, Round, summarize
from kvmkit.bench.processes import Child, RunFailedError, cpu_ns
from kvmkit.bench.summary import shown, spread, table
from kvmkit.bus import pc

if TYPE_CHECKING:
    from kvmkit.guest.progress import Progress

MEMORY = 32 << 20
CALIBRATION = 2000
BLOCK = 1 << 18
"""Bytes the other end passes on in one system call."""


class Point(msgspec.Struct, frozen=True):
    name: str
    way: net_kernel.Way
    size: int


POINTS = (
    Point("60 bytes from the guest", "send", 60),
    Point("60 bytes to the guest", "receive", 60),
    Point("1514 bytes from the guest", "send", 1514),
    Point("1514 bytes to the guest", "receive", 1514),
    Point("32 KiB from the guest", "send", 32768),
    Point("32 KiB to the guest", "receive", 32768),
)


class NetReport(msgspec.Struct):
    """The JSON. Rates are frames a second."""

    qemu_version: str | None
    points: dict[str, PointReport] = {}
    failures: list[str] = []


class Peer:
    """The other end of the cable: takes all that comes, or sends frames without end. A thread of this process."""

    def __init__(self, path: str, point: Point) -> None:
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._listener.bind(path)
        self._listener.listen(1)
        self._connection: socket.socket | None = None
        self._point = point
        self.received = 0
        self._thread = threading.Thread(target=self._work, daemon=True)
        self._thread.start()

    def _work(self) -> None:
        try:
            self._connection, _ = self._listener.accept()
            if self._point.way == "send":
                room = bytearray(BLOCK)
                while got := self._connection.recv_into(room):
                    self.received += got
                return
            one = self._point.size.to_bytes(4, "big") + net_kernel.frame(self._point.size)
            block = one * max(BLOCK // len(one), 1)
            while True:
                self._connection.sendall(block)
        except OSError:
            pass  # it is over

    def close(self) -> None:
        for each in (self._connection, self._listener):
            if each is not None:
                try:
                    each.shutdown(socket.SHUT_RDWR)
                except OSError:
                    pass
        self._thread.join()
        for each in (self._connection, self._listener):
            if each is not None:
                each.close()


def command(side: str, path: str, sock: str, stats: str) -> list[str]:
    if side == "kvmkit":
        options = ["--accel", "kvm", "--memory", f"{MEMORY >> 20}M", "--kernel", path, "--debug-exit"]
        options += ["--net", f"socket={sock}", "--stats", stats]
        return [sys.executable, "-m", "kvmkit", "run", *options]
    return [
        *qemu.multiboot(MEMORY, path),
        *("-global", "virtio-mmio.force-legacy=false"),
        *("-netdev", f"stream,id=n,server=off,addr.type=unix,addr.path={sock}"),
        *("-device", "virtio-net-device,netdev=n,bus=virtio-mmio-bus.0"),
    ]


def time_one(side: str, point: Point, frames: int, directory: Path, timeout: float) -> Round:
    """One run. Raises RunFailedError when it does not come to its end."""
    path, stats, sock = directory / "kernel.elf", directory / "stats.json", directory / "peer.sock"
    base = pc.VIRTIO_MMIO if side == "kvmkit" else QEMU_BASE
    path.write_bytes(net_kernel.build(base, point.way, point.size, frames))
    sock.unlink(missing_ok=True)
    peer = Peer(str(sock), point)
    try:
        with Child(command(side, str(path), str(sock), str(stats)), timeout, pipe=True) as child:
            start = child.read_line(kernel.START)
            cpu_start = cpu_ns(child.pid)
            end = child.read_line(kernel.END)
            cpu_end = cpu_ns(child.pid)
            status = child.wait()
            if status != DEBUG_EXIT_STATUS:
                raise child.failed(f"exit status {status}")
    finally:
        peer.close()
    if point.way == "send" and peer.received != frames * (4 + point.size):
        raise RunFailedError(f"{peer.received} bytes came out of it, not {frames * (4 + point.size)}")
    cpu = (cpu_end - cpu_start) / (frames * point.size) if cpu_end > cpu_start > 0 else None
    return Round(frames / (end - start) * 1e9, cpu, _memory_exits(stats, frames) if side == "kvmkit" else None)


def _memory_exits(stats: Path, frames: int) -> float | None:
    try:
        exits: dict[str, int] = json.loads(stats.read_bytes())["exits"]
    except (OSError, ValueError, KeyError):
        return None
    return exits.get("memory", exits.get("mmio", 0)) / frames


def measure(seconds: float, runs: int, timeout: float, progress: Progress) -> NetReport:
    """`runs` rounds of about `seconds` for each side and point. /dev/kvm has to be usable."""
    report = NetReport(qemu.version())
    sides = ["kvmkit", *(["qemu"] if report.qemu_version is not None else [])]
    with tempfile.TemporaryDirectory(prefix="kvmkit-bench-") as name:
        directory = Path(name)
        for point in POINTS:
            progress.step(f"{point.name}: how long one takes")
            try:
                first = time_one("kvmkit", point, CALIBRATION, directory, timeout)
            except RunFailedError as error:
                report.failures.append(f"{point.name}, kvmkit: {error}; not tried again")
                continue
            frames = min(max(int(seconds * first.rate), CALIBRATION), net_kernel.MOST_FRAMES)
            found = report.points[point.name] = PointReport(frames)
            for number in range(runs):
                turn = number % len(sides)
                for side in sides[turn:] + sides[:turn]:
                    progress.step(f"{point.name}: round {number + 1} of {runs}, {side}")
                    try:
                        done = time_one(side, point, frames, directory, timeout + 20 * seconds)
                        getattr(found, side).append(done)
                    except RunFailedError as error:
                        getattr(found, side).append(None)
                        report.failures.append(f"{point.name}, {side}, round {number + 1}: {error}")
            summarize(found)
    return report


def show(report: NetReport, stream: IO[str]) -> None:
    """The report for people."""
    peer = f" beside QEMU {report.qemu_version}" if report.qemu_version is not None else ""
    print(
        f"a network card on KVM{peer}: a polling driver in ring 3, a UNIX stream socket, {os.cpu_count()} CPUs;"
        " min / median / max",
        file=stream,
    )
    rows = []
    sizes = {point.name: point.size for point in POINTS}
    for name, found in report.points.items():
        for side, title in (("kvmkit", "kvmkit"), ("qemu", "QEMU")):
            done = [one for one in getattr(found, side) if one is not None]
            if not done:
                continue
            exits = [one.exits for one in done if one.exits is not None]
            rates = spread([one.rate for one in done])
            rows.append(
                [
                    f"{name}, {title}",
                    shown(rates),
                    f"{rates.median * sizes[name] / 1e6:,.0f}" if rates is not None else "",
                    shown(spread([one.cpu_per_gb for one in done if one.cpu_per_gb is not None]), 2),
                    f"{min(exits):.4f}" if exits else "",
                ]
            )
    table(["", "frames/s", "MB/s", "CPU s per GB", "exits per frame"], rows, stream)
    for name, found in report.points.items():
        if found.ratio is not None and found.best_ratio is not None:
            text = f"{shown(found.ratio, 2)} in pairs, {found.best_ratio:.2f} best to best"
            print(f"{name}: kvmkit / QEMU {text}", file=stream)
    if report.qemu_version is None:
        print(qemu.MISSING, file=stream)
    for failure in report.failures:
        print(f"failed: {failure}", file=stream)
