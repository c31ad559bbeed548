"""Run a list of kvm-unit-tests' x86 tests on kvmkit and on QEMU with the same engine, and show both verdicts."""

from __future__ import annotations

import argparse
import json
import shutil
import sys
import tempfile
from dataclasses import asdict
from pathlib import Path

from kvmkit.errors import HostError, KvmkitError

from . import source, verdict
from .verdict import Verdict

MEMORY = 128
SECONDS = 30.0
ENVIRONMENT = f"NR_CPUS=1\nMEMSIZE={MEMORY}\nTEST_DEVICE=0\nBOOTLOADER=kvmkit\n"
"""What the tests would ask a firmware configuration device for. They read it from their first module."""
TESTS = """
    apic cmpxchg8b debug dummy emulator eventinj hypercall idt_test ioapic kvmclock_test la57 memory msr pcid pku rdpru
    realmode rmap_chain setjmp sieve smap smptest syscall tsc tsc_adjust umip vmexit xsave
""".split()
ARGUMENTS = {"vmexit": "cpuid inl_from_pmtimer", "kvmclock_test": "100000"}


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(prog="tests.kvm_unit_tests", description=__doc__, allow_abbrev=False)
    parser.add_argument("--source", default=source.URL, metavar="DIR|URL", help="where to clone the tests from")
    parser.add_argument("--accel", choices=("tcg", "kvm"), default="tcg")
    parser.add_argument("--timeout", type=float, default=SECONDS, metavar="SECONDS", help="for one test on one side")
    parser.add_argument("--json", action="store_true", help="verdicts with their failing lines, as JSON")
    parser.add_argument("tests", nargs="*", metavar="TEST", help="names of x86/TEST.flat; all of our list without any")
    return parser.parse_args()


def ours(kernel: Path, accel: str, variables: Path, extra: str) -> list[str]:
    command = [sys.executable, "-m", "kvmkit", "run", "--accel", accel, "--kernel", str(kernel), "--debug-exit"]
    command += ["--memory", f"{MEMORY}M", "--initrd", str(variables)]
    return [*command, "--append", extra] if extra else command


def qemu(kernel: Path, accel: str, variables: Path, extra: str) -> list[str]:
    command = ["qemu-system-x86_64", "-nodefaults", "-no-user-config", "-no-reboot", "-machine", f"accel={accel}"]
    command += ["-cpu", "max", "-m", str(MEMORY), "-display", "none", "-serial", "stdio"]
    command += ["-device", "isa-debug-exit,iobase=0xf4,iosize=0x4", "-kernel", str(kernel), "-initrd", str(variables)]
    return [*command, "-append", extra] if extra else command


def main() -> int:
    options = arguments()
    try:
        return compare(options)
    except KvmkitError as error:
        print(f"kvm-unit-tests: {error}", file=sys.stderr)
        return 1


def compare(options: argparse.Namespace) -> int:
    if not shutil.which("qemu-system-x86_64"):
        raise HostError("QEMU is not installed: apt-get install qemu-system-x86")
    directory = source.built(options.source)
    names = options.tests or [name for name in TESTS if (directory / f"{name}.flat").exists()]
    found: dict[str, dict[str, Verdict]] = {}
    with tempfile.NamedTemporaryFile("w", suffix=".env") as variables:
        variables.write(ENVIRONMENT)
        variables.flush()
        if not options.json:
            print(f"{'test':16}{'kvmkit':12}QEMU", flush=True)
        for name in names:
            kernel = directory / f"{name}.flat"
            if not kernel.exists():
                raise HostError(f"{name}: the build made no {kernel.name}")
            found[name] = {
                side: verdict.judge(
                    *verdict.run(
                        make(kernel, options.accel, Path(variables.name), ARGUMENTS.get(name, "")), options.timeout
                    )
                )
                for side, make in (("kvmkit", ours), ("qemu", qemu))
            }
            if not options.json:
                print(f"{name:16}{found[name]['kvmkit']!s:12}{found[name]['qemu']}", flush=True)
    if options.json:
        print(json.dumps({name: {side: asdict(v) for side, v in both.items()} for name, both in found.items()}))
    else:
        show_differences(found)
    return 0


def show_differences(found: dict[str, dict[str, Verdict]]) -> None:
    for name, both in found.items():
        theirs = set(both["qemu"].failures)
        alone = [line for line in both["kvmkit"].failures if line not in theirs]
        if alone:
            print(f"\n{name}: fails on kvmkit and not on QEMU")
            print("\n".join(f"  {line}" for line in alone[:20]))


if __name__ == "__main__":
    sys.exit(main())
