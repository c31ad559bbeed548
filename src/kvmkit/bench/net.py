"""A network card on KVM: kvmkit and QEMU, each on a UNIX stream socket, the same polling driver in the guest."""

from __future__ import annotations

import os
import socket
import sys
import threading
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from kvmkit.bench import net_kernel, points, qemu
from kvmkit.bench.points import PointsReport, Round
from kvmkit.bench.processes import RunFailedError

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
    """One run. Raises RunFailedError when it does not come to its end.

    QEMU connects while its guest runs already, and drops what that sends before: such a run is made again, twice.
    """
    for again in (True, True, False):
        done, missing = _time(side, point, frames, directory, timeout)
        if missing == 0:
            return done
        if not again or side != "qemu":
            break
    raise RunFailedError(f"{missing} bytes did not come out of it")


def _time(side: str, point: Point, frames: int, directory: Path, timeout: float) -> tuple[Round, int]:
    """A run, and the bytes that its guest sent and that did not arrive."""
    path, stats, sock = directory / "kernel.elf", directory / "stats.json", directory / "peer.sock"
    path.write_bytes(net_kernel.build(points.BASES[side], point.way, point.size, frames))
    sock.unlink(missing_ok=True)
    peer = Peer(str(sock), point)
    try:
        line = command(side, str(path), str(sock), str(stats))
        done = points.timed(line, frames, point.size, stats if side == "kvmkit" else None, timeout)
    finally:
        peer.close()
    return done, frames * (4 + point.size) - peer.received if point.way == "send" else 0


def measure(seconds: float, runs: int, timeout: float, progress: Progress) -> PointsReport:
    """`runs` rounds of about `seconds` for each side and point. /dev/kvm has to be usable."""
    return points.measure(
        *(POINTS, time_one, seconds, runs, timeout, progress),
        calibration=CALIBRATION,
        most=net_kernel.MOST_FRAMES,
        slack=20,
    )


def show(report: PointsReport, stream: IO[str]) -> None:
    """The report for people."""
    peer = f" beside QEMU {report.qemu_version}" if report.qemu_version is not None else ""
    title = f"a network card on KVM{peer}: a polling driver in ring 3, a UNIX stream socket, {os.cpu_count()} CPUs;"
    sizes = {point.name: point.size for point in POINTS}

    def megabytes(name: str, rate: float) -> str:
        return f"{rate * sizes[name] / 1e6:,.0f}"

    points.show(report, stream, f"{title} min / median / max", "frame", digits=4, megabytes=megabytes)
