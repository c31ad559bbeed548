"""`kvmkit bench`: measure beside QEMU, in one run."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable
from typing import IO, TYPE_CHECKING, TypeVar

from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.bench.boot import BootReport
    from kvmkit.bench.exits import ExitsReport
    from kvmkit.bench.many import ManyReport
    from kvmkit.bench.points import PointsReport
    from kvmkit.bench.trip import TripReport
    from kvmkit.guest.progress import Progress

Report = TypeVar("Report", "BootReport", "ExitsReport", "PointsReport", "TripReport", "ManyReport")

SUMMARY = "measure beside QEMU in one run"

EPILOG = """\
examples:
  kvmkit bench boot --runs 10         Debian's kernel to user space, in turn with QEMU
  kvmkit bench exits --json           exits to user space on KVM, in turn with a bare loop and QEMU
  kvmkit bench blk                    a disk on KVM, in turn with QEMU
  kvmkit bench blk --accel tcg        fio in Linux on the software CPU, in turn with QEMU's
  kvmkit bench net                    a network card on KVM, in turn with QEMU
  kvmkit bench exec                   `kvmkit exec` of `true`, beyond the guest's own time
  kvmkit bench vms --count 50         idle VMs: how many, what each takes, and what stops it

exit status: 0 all was measured; 1 a run failed (it is told, and counts nowhere) or /dev/kvm can't be used.
Without QEMU, kvmkit is measured alone.
"""

BOOT_TIMEOUT = 60.0
EXITS_TIMEOUT = 30.0
MOST_RUNS = 1000
MOST_SECONDS = 600.0


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    topics = parser.add_subparsers(dest="topic", required=True, metavar="WHAT")
    boot = topics.add_parser("boot", help="cold boots", description="Time cold boots of the guest image tiny.")
    boot.add_argument("--accel", default="auto", metavar="ENGINE", help="auto, kvm or tcg (default: auto)")
    boot.add_argument("--memory", "-m", default="512M", metavar="SIZE", help="guest RAM (default: 512M)")
    exits = topics.add_parser("exits", help="exits on KVM", description="Time exits to user space on KVM.")
    exits.add_argument("--seconds", default="0.3", metavar="S", help="how long one round takes (default: 0.3)")
    blk = topics.add_parser("blk", help="a disk", description="Time reads and writes of a disk.")
    blk.add_argument("--accel", default="kvm", choices=("kvm", "tcg"), help="kvm (default), or tcg: fio in Linux")
    blk.add_argument("--seconds", default="0.5", metavar="S", help="how long one round takes (default: 0.5)")
    net = topics.add_parser("net", help="a network card on KVM", description="Time frames to and from a card on KVM.")
    net.add_argument("--seconds", default="0.5", metavar="S", help="how long one round takes (default: 0.5)")
    timed = [(boot, BOOT_TIMEOUT), (exits, EXITS_TIMEOUT), (blk, EXITS_TIMEOUT), (net, EXITS_TIMEOUT)]
    timed += _of_life(topics)
    for topic, timeout in timed:
        topic.add_argument("--runs", default="5", metavar="N", help="rounds (default: 5)")
        topic.add_argument(
            "--timeout",
            default=f"{timeout:g}",
            metavar="SECONDS",
            help=f"a run that takes longer has failed (default: {timeout:g})",
        )
        topic.add_argument("--json", action="store_true", help="print everything that was measured as JSON")


def _of_life(
    topics: argparse._SubParsersAction[argparse.ArgumentParser],
) -> list[tuple[argparse.ArgumentParser, float]]:
    """VMs that run: commands in them, and many at once."""
    trip = topics.add_parser("exec", help="commands in a VM", description="Time `true` in a VM that runs.")
    vms = topics.add_parser("vms", help="many VMs at once", description="Run many idle VMs, and see what they take.")
    for topic, image in ((trip, "debian"), (vms, "tiny")):
        topic.add_argument("--accel", default="auto", metavar="ENGINE", help="auto, kvm or tcg (default: auto)")
        topic.add_argument("--image", default=image, metavar="IMAGE", help=f"of the guests (default: {image})")
    vms.add_argument("--memory", "-m", default="128M", metavar="SIZE", help="guest RAM of each (default: 128M)")
    vms.add_argument("--count", default="50", metavar="N", help="how many (default: 50)")
    vms.add_argument("--seconds", default="10", metavar="S", help="for how long they idle (default: 10)")
    return [(trip, EXITS_TIMEOUT), (vms, EXITS_TIMEOUT)]


def run(args: argparse.Namespace) -> int:
    runs = int(_number(args.runs, "--runs", 1, MOST_RUNS, whole=True))
    timeout = _number(args.timeout, "--timeout", 0.1, 1e6)
    topics = {"boot": _boot, "exits": _exits, "blk": _blk, "net": _net, "exec": _exec, "vms": _vms}
    return topics[args.topic](args, runs, timeout)


def _engine(accel: str) -> str:
    from kvmkit.accel.choose import choose

    return choose(accel).__name__.rsplit(".", 1)[-1]


def _boot(args: argparse.Namespace, runs: int, timeout: float) -> int:
    from kvmkit.bench import boot
    from kvmkit.guest.progress import Shown
    from kvmkit.machine import parse_size

    memory = parse_size(args.memory)
    engine = _engine(args.accel)
    with Shown() as progress:
        report = boot.measure(engine, runs, memory, timeout, progress)
    return _told(args, report, boot.show)


def _exec(args: argparse.Namespace, runs: int, timeout: float) -> int:
    from kvmkit.bench import trip
    from kvmkit.guest.progress import Shown

    engine = _engine(args.accel)
    with Shown() as progress:
        report = trip.measure(engine, args.image, runs, timeout, progress)
    return _told(args, report, trip.show)


def _vms(args: argparse.Namespace, runs: int, timeout: float) -> int:
    from kvmkit.bench import many
    from kvmkit.guest.progress import Shown
    from kvmkit.machine import parse_size

    count = int(_number(args.count, "--count", 1, MOST_RUNS, whole=True))
    seconds = _number(args.seconds, "--seconds", 0.1, MOST_SECONDS)
    engine = _engine(args.accel)
    with Shown() as progress:
        report = many.measure(engine, args.image, count, parse_size(args.memory), seconds, progress)
    return _told(args, report, many.show)


def _exits(args: argparse.Namespace, runs: int, timeout: float) -> int:
    from kvmkit.bench import exits

    return _on_kvm(args, runs, timeout, exits.measure, exits.show)


def _blk(args: argparse.Namespace, runs: int, timeout: float) -> int:
    if args.accel == "tcg":
        return _fio(args, runs, timeout)
    from kvmkit.bench import blk

    return _on_kvm(args, runs, timeout, blk.measure, blk.show)


def _fio(args: argparse.Namespace, runs: int, timeout: float) -> int:
    from kvmkit.bench import blk_fio
    from kvmkit.guest.progress import Shown

    seconds = _number(args.seconds, "--seconds", 0.01, MOST_SECONDS)
    with Shown() as progress:
        report = blk_fio.measure(seconds, runs, timeout, progress)
    return _told(args, report, blk_fio.show)


def _net(args: argparse.Namespace, runs: int, timeout: float) -> int:
    from kvmkit.bench import net

    return _on_kvm(args, runs, timeout, net.measure, net.show)


def _on_kvm(
    args: argparse.Namespace,
    runs: int,
    timeout: float,
    measure: Callable[[float, int, float, Progress], Report],
    show: Callable[[Report, IO[str]], None],
) -> int:
    from kvmkit.accel.choose import choose
    from kvmkit.guest.progress import Shown

    seconds = _number(args.seconds, "--seconds", 0.01, MOST_SECONDS)
    choose("kvm")  # one that can't be used is told before anything starts
    with Shown() as progress:
        report = measure(seconds, runs, timeout, progress)
    return _told(args, report, show)


def _told(args: argparse.Namespace, report: Report, show: Callable[[Report, IO[str]], None]) -> int:
    if args.json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(report), indent=2).decode() + "\n")
    else:
        show(report, sys.stdout)
    return 1 if report.failures else 0


def _number(text: str, option: str, low: float, high: float, *, whole: bool = False) -> float:
    try:
        value: float = int(text) if whole else float(text)
    except ValueError:
        raise BadInput(f"{option} {text}: not a {'whole ' if whole else ''}number") from None
    if not low <= value <= high:
        raise BadInput(f"{option} {text}: give {low:g} to {high:g}")
    return value
