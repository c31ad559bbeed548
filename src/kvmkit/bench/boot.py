"""Cold boots of one kernel and initrd to user space and through one command: kvmkit and QEMU, in turn."""

from __future__ import annotations

import signal
import socket
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import IO, TYPE_CHECKING

import msgspec

from kvmkit.bench import qemu
from kvmkit.bench.processes import Child, RunFailedError, resident_mapping, status_bytes
from kvmkit.bench.summary import Spread, pairs, shown, spread, table
from kvmkit.paths import program

if TYPE_CHECKING:
    from kvmkit.guest.images import GuestImage
    from kvmkit.guest.progress import Progress

COMMAND = ["true"]
MIB = 1 << 20
METRICS = {
    "user_space_ms": ("until user space, ms", 0, 1.0),
    "command_end_ms": ("until the command's end, ms", 0, 1.0),
    "cpu_ms": ("CPU time, ms", 0, 1.0),
    "peak_rss_bytes": ("peak RSS, MiB", 1, MIB),
    "vmm_bytes": ("the same without guest RAM, MiB", 1, MIB),
}
"""Name, digits and unit of what is shown."""


class Boot(msgspec.Struct, frozen=True):
    """One boot. Times count from just before the process was started; CPU time is the whole process's.

    `vmm_bytes` is the peak RSS less the guest RAM that was resident; null: it can't be told.
    """

    user_space_ms: float
    command_end_ms: float
    cpu_ms: float
    peak_rss_bytes: int
    vmm_bytes: int | None


class BootReport(msgspec.Struct):
    """The JSON. Round by round; null: that run failed, and `failures` says how."""

    accel: str
    memory_bytes: int
    kernel: str
    qemu_version: str | None
    kvmkit: list[Boot | None] = []
    qemu: list[Boot | None] = []
    failures: list[str] = []
    summary: dict[str, dict[str, Spread | None]] = {}


def measure(accel: str, runs: int, memory: int, timeout: float, progress: Progress) -> BootReport:
    """Boot `runs` times on each side, after one boot each that is not counted. `accel` is "kvm" or "tcg".

    A side whose first boot fails is not tried again. Raises HostError when the image can't be built.
    """
    from kvmkit.guest import images

    image = images.ensure("tiny", progress)
    report = BootReport(accel, memory, image.release, qemu.version())
    sides: dict[str, tuple[Callable[[str, GuestImage, int, float], Boot], list[Boot | None]]] = {
        "kvmkit": (boot_kvmkit, report.kvmkit)
    }
    if report.qemu_version is not None:
        sides["QEMU"] = (boot_qemu, report.qemu)
    guest_ram: int | None = None
    for name in list(sides):
        progress.step(f"{name}: a first boot")
        try:
            sides[name][0](accel, image, memory, timeout)
            if name == "kvmkit":
                guest_ram = guest_ram_of_kvmkit(accel, memory, timeout)
        except RunFailedError as error:
            report.failures.append(f"{name} on {accel}: {error}; not tried again")
            del sides[name]
    for number in range(1, runs + 1):
        for name, (boot, boots) in sides.items():
            progress.step(f"{name}: boot {number} of {runs}")
            try:
                found = boot(accel, image, memory, timeout)
                if name == "kvmkit" and guest_ram is not None:
                    found = msgspec.structs.replace(found, vmm_bytes=found.peak_rss_bytes - guest_ram)
                boots.append(found)
            except RunFailedError as error:
                boots.append(None)
                report.failures.append(f"{name} on {accel}, boot {number}: {error}")
    for metric in METRICS:
        ours, theirs = ([_value(boot, metric) for boot in boots] for boots in (report.kvmkit, report.qemu))
        report.summary[metric] = {
            "kvmkit": spread([value for value in ours if value is not None]),
            "qemu": spread([value for value in theirs if value is not None]),
            "ratio": pairs(ours, theirs) if len(ours) == len(theirs) else None,
        }
    return report


def _value(boot: Boot | None, metric: str) -> float | None:
    return None if boot is None else getattr(boot, metric)


def append(image: GuestImage) -> str:
    """The kernel parameters that `kvmkit run` gives, for QEMU too."""
    return f"console=ttyS0 {image.append} panic=-1 kvmkit.channel=ttyS1"


def kvmkit_command(accel: str, memory: int) -> list[str]:
    """`kvmkit run` as ./kvmkit starts it."""
    # QEMU has no card and no vsock either.
    options = ["--accel", accel, "--memory", f"{memory // 1024}K", "--net", "none", "--no-vsock"]
    return [*program(), "run", "tiny", *options]


def guest_ram_of_kvmkit(accel: str, memory: int, timeout: float) -> int | None:
    """How much guest RAM is resident at the end of such a boot; None: it can't be told. Raises RunFailedError.

    A boot of its own: looking costs the process that is looked at some time.
    """
    found = 0

    def sample(pid: int) -> None:
        nonlocal found
        found = max(found, resident_mapping(pid, memory) or 0)

    with Child([*kvmkit_command(accel, memory), "--", *COMMAND], timeout) as child:
        if status := child.wait(sample, every=0.1):
            raise child.failed(f"exit status {status}")
    return found or None


def boot_kvmkit(accel: str, image: GuestImage, memory: int, timeout: float) -> Boot:
    """`kvmkit run` as a user starts it, Python's start included; `vmm_bytes` is null. Raises RunFailedError."""
    with tempfile.NamedTemporaryFile(prefix="kvmkit-bench-") as stats:
        command = [*kvmkit_command(accel, memory), "--stats", stats.name, "--", *COMMAND]
        with Child(command, timeout) as child:
            status = child.wait()
            try:
                told = msgspec.json.decode(Path(stats.name).read_bytes())
                offset = (told["started_ns"] - child.started_ns) / 1e6
                user_space, end = (offset + told[moment] for moment in ("user_space_ms", "command_end_ms"))
            except (msgspec.DecodeError, KeyError, TypeError):
                raise child.failed(f"exit status {status}, and no times") from None
            if status:
                raise child.failed(f"exit status {status}")
            assert child.cpu_seconds is not None
            return Boot(user_space, end, child.cpu_seconds * 1e3, told["peak_rss_bytes"], None)


def boot_qemu(accel: str, image: GuestImage, memory: int, timeout: float) -> Boot:
    """QEMU with the same kernel, initrd, parameters and agent. Its client runs here, and costs it no start.

    Raises RunFailedError.
    """
    from kvmkit.guest.client import AgentClient, AgentGone, CommandTimeout, ProtocolError

    ours, theirs = socket.socketpair()
    with ours, theirs:
        command = qemu.linux(accel, memory, str(image.kernel), str(image.initrd), append(image), theirs.fileno())
        with Child(command, timeout, pass_fds=[theirs.fileno()]) as child:
            theirs.close()
            client = AgentClient(ours.fileno())
            try:
                client.wait_hello(child.left())
                user_space = time.monotonic_ns()
                status = client.run(COMMAND, stdout=None, stderr=None, timeout=child.left())
                end = time.monotonic_ns()
            except (AgentGone, CommandTimeout, ProtocolError) as error:
                raise child.failed(str(error)) from None
            peak = status_bytes(child.pid, "VmHWM")
            guest_ram = resident_mapping(child.pid, memory)
            child.send(signal.SIGTERM)
            child.wait()
            if status or peak is None:
                raise child.failed(f"the command's status is {status}")
            assert child.cpu_seconds is not None
            first, last = ((at - child.started_ns) / 1e6 for at in (user_space, end))
            vmm = peak - guest_ram if guest_ram is not None else None
            return Boot(first, last, child.cpu_seconds * 1e3, peak, vmm)


def show(report: BootReport, stream: IO[str]) -> None:
    """The report for people."""
    with_qemu = report.qemu_version is not None
    peer = f" beside QEMU {report.qemu_version}" if with_qemu else ""
    print(
        f"Linux {report.kernel}, {report.memory_bytes // MIB} MiB, engine {report.accel},"
        f" {len(report.kvmkit)} boots of kvmkit{peer}; min / median / max",
        file=stream,
    )
    rows = []
    for metric, (name, digits, unit) in METRICS.items():
        found = report.summary[metric]
        cells = [_scaled(found["kvmkit"], unit, digits)]
        if with_qemu:
            cells += [_scaled(found["qemu"], unit, digits), shown(found["ratio"], 2)]
        rows.append([name, *cells])
    if report.kvmkit or report.qemu:
        table(["", "kvmkit", *(["QEMU", "kvmkit / QEMU, in pairs"] if with_qemu else [])], rows, stream)
    if not with_qemu:
        print(qemu.MISSING, file=stream)
    for failure in report.failures:
        print(f"failed: {failure}", file=stream)


def _scaled(value: Spread | None, unit: float, digits: int) -> str:
    return shown(value and Spread(value.min / unit, value.median / unit, value.max / unit), digits)
