"""Run kvm-unit-tests on kvmkit and on QEMU with the same engine, and print both verdicts."""

from __future__ import annotations

import argparse
import shutil
import sys
import tempfile
import time
from pathlib import Path

from kvmkit.errors import BadInput, HostError, KvmkitError
from kvmkit.paths import cache_dir

from . import source
from .cases import CASES, Case
from .verdict import Verdict, run

MEMORY = 512
"""MiB. The tests get it from the environment below: kvmkit has no fw_cfg to ask."""


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.kvm_unit_tests", description=__doc__, allow_abbrev=False)
    parser.add_argument("--engine", choices=("tcg", "kvm"), default="tcg")
    parser.add_argument("--source", default=source.URL, metavar="DIR|URL", help="where to clone from (%(default)s)")
    parser.add_argument("--commit", default=source.COMMIT, help="what to check out (%(default)s)")
    parser.add_argument("--built", type=Path, metavar="DIR", help="a directory of .flat files, instead of building")
    parser.add_argument("--only-build", action="store_true", help="build, print the directory, run nothing")
    parser.add_argument("--no-qemu", action="store_true", help="run on kvmkit alone")
    parser.add_argument("--slow", type=float, default=1.0, metavar="FACTOR", help="multiply every time limit")
    parser.add_argument("--details", action="store_true", help="list the reports that differ")
    parser.add_argument("tests", nargs="*", help="names of the table; default: all")
    return parser.parse_args()


def kvmkit_command(case: Case, engine: str, directory: Path, environment: Path) -> list[str]:
    command = [sys.executable, "-m", "kvmkit", "run", "--accel", engine, "--cpu", "max", "--memory", f"{MEMORY}M"]
    command += ["--cpus", str(case.cpus), "--kernel", str(directory / f"{case.file}.flat"), "--debug-exit"]
    return [*command, "--initrd", str(environment), *(["--append", case.arguments] if case.arguments else [])]


def qemu_command(case: Case, engine: str, directory: Path, environment: Path) -> list[str]:
    command = ["qemu-system-x86_64", "-accel", engine, "-cpu", "max", "-m", str(MEMORY), "-smp", str(case.cpus)]
    command += ["-nodefaults", "-no-user-config", "-no-reboot", "-display", "none", "-serial", "stdio"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=4", "-kernel", str(directory / f"{case.file}.flat")]
    return [*command, "-initrd", str(environment), *(["-append", case.arguments] if case.arguments else [])]


def difference(ours: Verdict, theirs: Verdict) -> str:
    """What a reader should look at; empty when the two agree."""
    if ours.word == theirs.word and sorted(ours.failures) == sorted(theirs.failures):
        return "" if ours.passed == theirs.passed else "same verdict, other number of reports"
    only = [text for text in ours.failures if text not in theirs.failures]
    qemu = [text for text in theirs.failures if text not in ours.failures]
    parts = [f"{len(only)} fail on kvmkit alone"] if only else []
    parts += [f"{len(qemu)} fail on QEMU alone"] if qemu else []
    parts += [f"{name}: {verdict.note}" for name, verdict in (("kvmkit", ours), ("QEMU", theirs)) if verdict.note]
    return "; ".join(parts) or "verdict differs"


def choose(names: list[str]) -> list[Case]:
    known = {case.name: case for case in CASES}
    for name in names:
        if name not in known:
            raise BadInput(f"no test {name!r}; there are: {', '.join(known)}")
    return [known[name] for name in names] or CASES


def environment_text(case: Case) -> str:
    return f"NR_CPUS={case.cpus}\nMEMSIZE={MEMORY}\nTEST_DEVICE=1\nHAVE_QEMU=0\n"


def main() -> int:
    options = arguments()
    cases = choose(options.tests)
    if not options.no_qemu and shutil.which("qemu-system-x86_64") is None:
        raise HostError("no QEMU to compare with: apt-get install qemu-system-x86, or give --no-qemu")
    directory = options.built or source.build(options.source, options.commit, cache_dir())
    source.check_built(directory)
    if options.only_build:
        print(directory)
        return 0
    print(f"{'test':<20} {'kvmkit':<16} {'s':>5}  {'QEMU':<16} {'s':>5}  difference")
    apart = 0
    for case in cases:
        with tempfile.NamedTemporaryFile("w", prefix="environ-") as file:
            file.write(environment_text(case))
            file.flush()
            place = Path(file.name)
            seconds = case.seconds * options.slow
            began = time.monotonic()
            ours = run(kvmkit_command(case, options.engine, directory, place), seconds)
            middle = time.monotonic()
            theirs = None if options.no_qemu else run(qemu_command(case, options.engine, directory, place), seconds)
            ended = time.monotonic()
        said = difference(ours, theirs) if theirs else ours.note
        apart += bool(theirs and said)
        their_word, their_time = (str(theirs), f"{ended - middle:5.1f}") if theirs else ("-", "")
        print(f"{case.name:<20} {ours!s:<16} {middle - began:5.1f}  {their_word:<16} {their_time:>5}  {said}")
        sys.stdout.flush()
        if options.details and theirs:
            for name, verdict, other in (("kvmkit", ours, theirs), ("QEMU", theirs, ours)):
                for text in verdict.failures:
                    if text not in other.failures:
                        print(f"    FAIL on {name} alone: {text}")
    if not options.no_qemu:
        print(f"{len(cases)} tests, {apart} with a difference")
    return 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except KvmkitError as error:
        print(f"kvm_unit_tests: {error}", file=sys.stderr)
        sys.exit(error.exit_status)
