"""`kvmkit accel`: which engine runs guests here, and why."""

from __future__ import annotations

import argparse
import json
import sys

from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["accel"].summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print it as JSON")
    parser.add_argument("--fresh", action="store_true", help="measure again, whatever was measured since the host's boot")
    parser.epilog = "exit status: 0. What stands in the way of kvm in detail: kvmkit doctor"


def run(args: argparse.Namespace) -> int:
    from dataclasses import asdict

    from kvmkit.accel.choose import probe

    found = probe(fresh=args.fresh)
    if args.json:
        json.dump({"engine": found.engine, **asdict(found)}, sys.stdout, indent=2)
        print()
        return 0
    rows = [
        ("auto takes", found.engine),
        ("why", found.reason),
        ("what to do", found.advice),
        ("/dev/kvm", ("there, " + ("may be opened" if found.permission else "no permission")) if found.device else "absent"),
        ("KVM API", "" if found.api_version is None else str(found.api_version)),
        ("ring 0", "" if found.ring0_rate is None else f"{found.ring0_rate:,.1f} million instructions/s"),
        ("an exit", "" if found.exit_cost is None else f"{found.exit_cost:.1f} us (a port write, to user space and back)"),
    ]
    for name, text in rows:
        if text:
            print(f"{name:<12}{text}")
    return 0
