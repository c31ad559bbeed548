"""Run commands and this checkout's tests in the KVM test host."""

from __future__ import annotations

import argparse
import os
import signal
import sys
import time
from contextlib import suppress
from types import FrameType

from kvmkit.errors import HostError, KvmkitError

from . import parts
from .channel import Gone, Overdue
from .host import Host, Shape, host, stop

ENVIRONMENT = {
    "KVMKIT_KVMHOST": "1",
    "PYTHONPATH": "/kvmkit/checkout/src:/kvmkit/packages",
    "PYTHONDONTWRITEBYTECODE": "1",
    "XDG_CACHE_HOME": "/kvmkit/cache",
    "PATH": "/kvmkit:/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin",
}
PYTEST = ["python3", "-X", "faulthandler", "-m", "pytest", "-p", "no:cacheprovider", "--durations=5", "-rs"]
UEFI = "tests/kvmhost/test_uefi.py"
"""For a host whose clock counts instructions: QEMU 7.2 ends by an assertion of its own (tcg_handle_interrupt, called
without its lock) when a guest of SVM writes CR8 while an interrupt waits. OVMF does that at the end of each tick. Where
ticks come by the wall clock, and so often late, every second start of OVMF ended so."""
LIMIT = 300
"""Seconds for everything that runs inside; the tests take a third of it."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.kvmhost", description=__doc__, allow_abbrev=False)
    parser.add_argument("--cpus", type=int, default=1, help="processors of the test host")
    parser.add_argument("--cpu", default="EPYC,+svm", help="its QEMU processor model; it must have SVM")
    parser.add_argument("--counted", action="store_true", help="its clock counts instructions; the tests are OVMF's")
    parser.add_argument("--stop", action="store_true", help="end a host that was kept warm, and do nothing else")
    parser.add_argument("--limit", type=float, default=LIMIT, help="seconds that what runs inside may take")
    keep = parser.add_mutually_exclusive_group()
    keep.add_argument("--keep", action="store_true", help="keep it warm afterwards (the default, but not under CI)")
    keep.add_argument("--no-keep", action="store_true", help="end it afterwards")
    parser.add_argument("--run", action="store_true", help="run a command line in it instead of the tests")
    parser.add_argument("rest", nargs=argparse.REMAINDER, metavar="ARGS", help="for pytest, or the command line")
    return parser.parse_args()


def show(kind: bytes, data: bytes) -> None:
    stream = sys.stdout if kind == b"O" else sys.stderr
    stream.buffer.write(data)
    stream.buffer.flush()


def pass_on_signals(machine: Host) -> None:
    """Ctrl-C and SIGTERM end the command inside first; a second one ends us."""

    def handler(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)
        machine.channel.signal(number)

    for number in (signal.SIGINT, signal.SIGTERM):
        signal.signal(number, handler)


def push_all(machine: Host) -> list[str]:
    files = {"packages": parts.packages(), "checkout": parts.checkout(), "cache": parts.images(), "disk": parts.disk()}
    return [name for name, content in files.items() if parts.push(machine, name, content)]


def tell_where(machine: Host) -> None:
    """Show what an overdue command and the host itself were doing."""
    with suppress(HostError):  # what is heard until the command has ended, or the host says no more
        machine.channel.signal(signal.SIGABRT)  # Python's faulthandler writes the stack of each thread
        machine.channel.hear(show, 10)
    print(machine.state(), file=sys.stderr)


def run(shape: Shape, command: list[str], limit: float) -> int:
    """A command in the host; its exit status. Raises Overdue, and Gone when the host ended meanwhile."""
    started = time.monotonic()
    with host(shape) as machine:
        answered = time.monotonic()
        pushed = push_all(machine)
        ready = time.monotonic()
        print(
            f"KVM test host: {'started' if machine.started else 'found warm'} in {answered - started:.1f} s, "
            f"pushed {', '.join(pushed) or 'nothing'} in {ready - answered:.1f} s",
            file=sys.stderr,
        )
        pass_on_signals(machine)
        request = {"run": command, "cwd": "/kvmkit/checkout", "env": ENVIRONMENT}
        try:
            return machine.channel.request(request, show, limit)
        except Overdue:
            tell_where(machine)
            raise
        except Gone:
            print("", *machine.said(), sep="\n", file=sys.stderr)
            raise


def main() -> int:
    options = arguments()
    shape = Shape(cpu=options.cpu, cpus=options.cpus, counted=options.counted)
    if options.stop:
        stop(shape)
        return 0
    rest = options.rest[1:] if options.rest[:1] == ["--"] else options.rest
    command = rest if options.run else [*PYTEST, *(rest or default_tests(shape))]
    keep = options.keep or not (options.no_keep or os.environ.get("CI"))
    try:
        try:
            return run(shape, command, options.limit)
        except Gone as gone:
            # Nothing in a host's user space can end it: its QEMU did, or its kernel. What it ran starts over, once.
            print(f"kvmhost: {gone}; all of it once more, in a new one", file=sys.stderr)
            stop(shape)
            return run(shape, command, options.limit)
    except Overdue:
        keep = False
        raise
    finally:
        if not keep:
            stop(shape)


def default_tests(shape: Shape) -> list[str]:
    """Those that are meant for a host of this shape."""
    if shape.counted:
        return [UEFI]
    return ["tests/kvmhost", "tests/microguests/test_smp.py", "-k", "not tcg", f"--ignore={UEFI}"]


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KvmkitError as error:
        print(f"kvmhost: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
