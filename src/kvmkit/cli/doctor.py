"""`kvmkit doctor`: can a VM run here, and if not, what mends it."""

from __future__ import annotations

import argparse
import sys

from kvmkit.host import Host, Speed
from kvmkit.host.doctor import examine

SUMMARY = "check this host: processor, kernel, /dev/kvm, nesting, huge pages, firmware, tools"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--root", metavar="DIR", default="/", help="look at a tree of files instead of this system")
    parser.epilog = (
        "examples:\n"
        "  kvmkit doctor                    one screen; what can be mended has its command below it\n"
        "  kvmkit doctor --json             for programs\n"
        "  kvmkit doctor --root /mnt        an installed system that does not run\n\n"
        "exit status: 0 a VM runs accelerated, 1 only on the software CPU, 2 not at all"
    )


def run(args: argparse.Namespace) -> int:
    host = open_host(args.root)
    report = examine(host, _measure() if host.live else None, _software(), vm_names() if host.live else None)
    if args.json:
        print(report.as_json())
    else:
        report.show(sys.stdout)
    return report.status


def open_host(root: str) -> Host:
    from pathlib import Path

    from kvmkit.errors import BadInput

    if not Path(root).is_dir():
        raise BadInput(f"--root {root}: is no directory")
    return Host(root)


def vm_names() -> dict[int, str]:
    """This user's VMs that run, by their processes."""
    from kvmkit.errors import KvmkitError
    from kvmkit.manager import listing

    try:
        return {row.pid: row.name for row in listing.rows(everything=False) if row.pid}
    except (KvmkitError, OSError):
        return {}  # no directory for VMs can be had


def _measure() -> Speed | None:
    """How fast /dev/kvm is; None when there is no engine to measure it with, or it can't be opened."""
    from kvmkit.accel.choose import probe

    found = probe()
    if not found.usable:
        return None
    ring0 = None if found.ring0_rate is None else found.ring0_rate * 1e6
    cost = None if found.exit_cost is None else found.exit_cost * 1000
    return Speed(found.fit, ring0, cost, found.reason if ring0 is None else "")


def _software() -> str | None:
    """Why the software CPU can't run here; None when it can."""
    try:
        import kvmkit.accel.tcg  # noqa: F401 # whether it can be imported is the question
    except ImportError as error:
        return f"the software CPU is not in this installation ({error}): pip install --force-reinstall kvmkit"
    return None
