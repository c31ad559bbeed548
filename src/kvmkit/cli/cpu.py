"""`kvmkit cpu`: the CPU models there are, and what this host can give of them."""

from __future__ import annotations

import argparse
import json
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmkit.accel.cpuid import Table

SUMMARY = "list CPU models, and what this host can give of them"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser(
        "list", help="every model, and which features of it this host lacks", description="List CPU models."
    )
    listing.add_argument("--json", action="store_true", help="print them as JSON")
    show = verbs.add_parser(
        "show",
        help="the features a guest sees with --cpu MODEL[,+FEATURE][,-FEATURE]",
        description="Show what a guest sees with --cpu MODEL[,+FEATURE][,-FEATURE] on KVM.",
    )
    show.add_argument("model", metavar="MODEL", help="as for --cpu: host, x86-64-v2,+avx2, host,-x2apic")
    show.add_argument("--json", action="store_true", help="print them as JSON")


def run(args: argparse.Namespace) -> int:
    return _list(args) if args.verb == "list" else _show(args)


def supported() -> Table:
    """What this host's KVM can show a guest. HostError without a /dev/kvm that opens."""
    from kvmkit.accel.cpuid import with_engine
    from kvmkit.accel.kvm.system import CAPABILITIES, KvmSystem

    system = KvmSystem()
    try:
        deadline = bool(system.check_extension(CAPABILITIES["TSC_DEADLINE_TIMER"]))
        return with_engine(system.supported_cpuid(), deadline=deadline)
    finally:
        system.close()


def _list(args: argparse.Namespace) -> int:
    from kvmkit.accel.cpuid import MODELS, Baseline, missing
    from kvmkit.errors import HostError

    try:
        table, why = supported(), ""
    except HostError as error:  # the models can be named all the same
        table, why = None, str(error)
    models = {}
    for name, model in MODELS.items():
        text = model.description if isinstance(model, Baseline) else model
        models[name] = {"description": text, "missing": None if table is None else missing(name, table)}
    if args.json:
        print(json.dumps({"models": models, "reason": why}, indent=2))
        return 0
    width = max(map(len, models))
    for name, told in models.items():
        print(f"{name:<{width}}  {told['description']}")
        if told["missing"]:
            print(f"{'':<{width}}  this host lacks: {' '.join(told['missing'])}")
    if why:
        print(f"what this host can give of them is not known: {why}")
    print("these are for KVM; the software CPU (tcg) has one model of its own, without AVX")
    return 0


def _show(args: argparse.Namespace) -> int:
    from kvmkit.accel.cpuid import has, missing, select
    from kvmkit.accel.features import FEATURES

    table = supported()
    chosen = select(args.model, table)
    seen = [name for name in FEATURES if has(chosen, name)]
    lacking = missing(args.model, table)
    if args.json:
        print(json.dumps({"model": args.model, "features": seen, "missing": lacking}, indent=2))
        return 0
    from textwrap import fill

    print(f"--cpu {args.model} shows a guest {len(seen)} features:")
    print(fill(" ".join(seen), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
    if lacking:
        print(f"of the model this host lacks: {' '.join(lacking)}")
    nested = "vmx" in seen or "svm" in seen
    print(f"nested VMs: {'a guest can run KVM itself' if nested else 'no (neither vmx nor svm)'}")
    return 0
