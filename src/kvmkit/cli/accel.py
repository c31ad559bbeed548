"""`kvmkit accel`: which engine a VM runs on here, and why."""

from __future__ import annotations

import argparse
import sys

SUMMARY = "show which engine VMs run on here, and why"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="print what was found as JSON")
    parser.add_argument("--fresh", action="store_true", help="measure again instead of using this boot's measurement")


def run(args: argparse.Namespace) -> int:
    from kvmkit.accel.choose import FAST_ENOUGH, probe

    found = probe(fresh=args.fresh)
    if args.json:
        import msgspec

        told = {"engine": found.engine, **msgspec.structs.asdict(found)}
        sys.stdout.write(msgspec.json.format(msgspec.json.encode(told)).decode() + "\n")
        return 0
    print(f"engine     {found.engine}  (what --accel auto takes)")
    print(f"/dev/kvm   {_device(found.device, found.permission, found.api_version)}")
    if found.ring0_rate is not None and found.exit_cost is not None:
        print(f"ring 0     {found.ring0_rate:,.1f} million instructions/s; auto wants {FAST_ENOUGH:,.0f} or more")
        print(f"exit       {found.exit_cost:.1f} us for a port write")
    print(f"why        {found.reason}")
    if found.advice:
        print(f"advice     {found.advice}")
    return 0


def _device(present: bool, permission: bool, version: int | None) -> str:
    if not present:
        return "not there"
    if not permission:
        return "there, but not for this user"
    return f"there, API version {version}"
