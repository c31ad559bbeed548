"""How many idle VMs this host carries at once, what each takes, and what stopped it from being more."""

from __future__ import annotations

import os
import subprocess
import time
from contextlib import ExitStack
from typing import IO, TYPE_CHECKING

import msgspec

from kvmkit.bench.own_home import own_home, started
from kvmkit.bench.processes import RunFailedError
from kvmkit.bench.summary import Spread, shown, spread, table
from kvmkit.errors import BadInput, KvmkitError
from kvmkit.host.pages import meminfo
from kvmkit.host.system import Host
from kvmkit.paths import program

if TYPE_CHECKING:
    from kvmkit.guest.progress import Progress
    from kvmkit.manager.home import Home

MIB = 1 << 20
SPARE = 1 << 30
"""Bytes of memory that are left to the host."""
SETTLE_SECONDS = 12.0
"""A guest's own work after its boot is over then."""
LISTINGS = 9


class ManyReport(msgspec.Struct):
    """The JSON. `asked` and `running` are numbers of VMs; `stopped_by` says why there are not more."""

    accel: str
    image: str
    memory_bytes: int
    """Guest RAM of each."""
    asked: int
    running: int = 0
    stopped_by: str = ""
    start_ms: Spread | None = None
    """One VM, until its agent answers, while those before it are there."""
    memory_used_bytes: Spread | None = None
    """Of each VM's process: its proportional set size, guest RAM included."""
    idle_cpu_percent: Spread | None = None
    """Of each VM's process, of one host CPU."""
    host_used_bytes: int = 0
    """By how much the host's available memory became less."""
    ps_ms: Spread | None = None
    """`kvmkit ps`, as a process, Python's start included."""
    exec_ms: float = 0.0
    """`true` in each of them in turn, on average, from a program."""
    failures: list[str] = []


def measure(accel: str, image: str, count: int, memory: int, seconds: float, progress: Progress) -> ManyReport:
    """Start up to `count` VMs of `image`, let them idle for `seconds`, and look at them."""
    report = ManyReport(accel, image, memory, count)
    with own_home(), ExitStack() as held:
        homes: list[Home] = []
        before = _available()
        took = []
        while len(homes) < count:
            if _available() < SPARE + memory:
                report.stopped_by = f"memory: {_available() // MIB} MiB of the host's are left"
                break
            progress.step(f"VM {len(homes) + 1} of {count}")
            progress.advance(len(homes), count)
            began = time.perf_counter()
            try:
                homes.append(held.enter_context(started(accel, image, memory)))
            except BadInput:
                raise  # not one of them can be
            except (KvmkitError, OSError) as error:
                report.stopped_by = str(error)
                break
            took.append((time.perf_counter() - began) * 1e3)
        report.stopped_by = report.stopped_by or f"nothing: all {count} that were asked for run"
        report.running = len(homes)
        report.start_ms = spread(took)
        if homes:
            progress.step(f"{len(homes)} VMs idle")
            time.sleep(SETTLE_SECONDS)
            _look(report, homes, seconds)
            report.host_used_bytes = max(before - _available(), 0)
    return report


def _look(report: ManyReport, homes: list[Home], seconds: float) -> None:
    from kvmkit.manager.execute import execute
    from kvmkit.manager.listing import row

    pids = [row(home).pid for home in homes]
    before, began = [_ticks(pid) for pid in pids], time.monotonic()
    time.sleep(seconds)
    passed = (time.monotonic() - began) * os.sysconf("SC_CLK_TCK")
    cpu = [100 * (_ticks(pid) - ticks) / passed for pid, ticks in zip(pids, before, strict=True)]
    report.idle_cpu_percent = spread(cpu)
    report.memory_used_bytes = spread([_proportional(pid) for pid in pids])
    report.ps_ms = spread([_ps(len(homes)) for _ in range(LISTINGS)])
    began = time.perf_counter()
    for home in homes:
        try:
            status = execute(home, ["true"], timeout=60)
        except KvmkitError as error:
            report.failures.append(str(error))
            continue
        if status:
            report.failures.append(f"{home.name}: true: status {status}")
    report.exec_ms = (time.perf_counter() - began) * 1e3 / len(homes)


def _ps(count: int) -> float:
    began = time.perf_counter()
    done = subprocess.run([*program(), "ps"], stdin=subprocess.DEVNULL, capture_output=True, check=False)
    took = (time.perf_counter() - began) * 1e3
    if done.returncode or done.stdout.count(b"running") != count:
        raise RunFailedError(f"kvmkit ps: status {done.returncode}, not {count} VMs")
    return took


def _ticks(pid: int) -> int:
    from kvmkit.manager.record import process_stat

    fields = process_stat(pid)
    return int(fields[11]) + int(fields[12]) if fields else 0


def _proportional(pid: int) -> int:
    """Source: proc_pid_smaps(5), smaps_rollup."""
    with open(f"/proc/{pid}/smaps_rollup", encoding="ascii") as file:
        return next((int(line.split()[1]) * 1024 for line in file if line.startswith("Pss:")), 0)


def _available() -> int:
    return meminfo(Host()).get("MemAvailable", 0)


def show(report: ManyReport, stream: IO[str]) -> None:
    """The report for people."""
    print(
        f"{report.running} idle VMs of {report.asked} ({report.image}, {report.memory_bytes // MIB} MiB each),"
        f" engine {report.accel}; min / median / max",
        file=stream,
    )
    print(f"what stops it: {report.stopped_by}", file=stream)
    used = report.memory_used_bytes
    used = used and Spread(used.min / MIB, used.median / MIB, used.max / MIB)
    rows = [
        ["start of one until its agent answers, ms", shown(report.start_ms)],
        ["memory of a VM's process (PSS), MiB", shown(used)],
        ["CPU of one that idles, % of a host CPU", shown(report.idle_cpu_percent, 2)],
        ["kvmkit ps, Python's start included, ms", shown(report.ps_ms)],
    ]  # fmt: skip
    if report.running:
        table(["", ""], rows, stream)
        print(f"the host's memory: {report.host_used_bytes // MIB} MiB less", file=stream)
        print(f"`true` in each of them in turn: {report.exec_ms:.1f} ms on average", file=stream)
    for failure in report.failures:
        print(f"failed: {failure}", file=stream)
