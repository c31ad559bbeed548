"""`kvmkit cpu`: the CPU models there are, and what this host can give of them."""

from __future__ import annotations

import argparse
import json
from textwrap import fill
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmkit.accel.cpuid import Table

SUMMARY = "list CPU models, and what this host can give of them"


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = """\
examples:
  kvmkit cpu list                        every model, and what kvm and tcg lack of it here
  kvmkit cpu show host                   what a guest with --cpu host sees
  kvmkit cpu show EPYC-Rome,-svm --accel kvm
"""
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    listing = verbs.add_parser(
        "list", help="every model, and which features of it this host lacks", description="List CPU models."
    )
    listing.add_argument("--json", action="store_true", help="print them as JSON")
    show = verbs.add_parser(
        "show",
        help="the features a guest sees with --cpu MODEL[,+FEATURE][,-FEATURE]",
        description="Show what a guest sees with --cpu MODEL[,+FEATURE][,-FEATURE], on each engine.",
    )
    show.add_argument("model", metavar="MODEL", help="as for --cpu: host, x86-64-v2,+avx2, host,-x2apic")
    show.add_argument("--accel", choices=("kvm", "tcg"), help="on this engine only")
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


def software() -> Table:
    """What the software CPU can show a guest."""
    from kvmkit.accel.tcg import features

    return features.supported()


def _engines() -> tuple[dict[str, Table | None], str]:
    """What each engine can give, None where that is not known, and why not."""
    from kvmkit.errors import HostError

    try:
        return {"kvm": supported(), "tcg": software()}, ""
    except HostError as error:  # the models can be named all the same
        return {"kvm": None, "tcg": software()}, str(error)


def _list(args: argparse.Namespace) -> int:
    from kvmkit.accel import models
    from kvmkit.accel.cpuid import MODELS, Baseline, missing

    engines, why = _engines()
    told = {}
    for name, model in MODELS.items():
        text = model.description if isinstance(model, Baseline) else model
        lacks = {engine: None if table is None else missing(name, table) for engine, table in engines.items()}
        told[name] = {"description": text, "missing": lacks}
    if args.json:
        print(json.dumps({"models": told, "aliases": models.ALIASES, "reason": why}, indent=2))
        return 0
    width = max(len(name) for name in told if not _is_version(name))
    print(f"{'model':<{width}}  {'kvm':<9}  {'tcg':<9}  what it is")
    for name, row in told.items():
        if not _is_version(name):
            kvm, tcg = (_word(row["missing"][engine]) for engine in ("kvm", "tcg"))  # type: ignore[index] # a dict
            print(f"{name:<{width}}  {kvm:<9}  {tcg:<9}  {row['description']}")
    others = [name for name in [*told, *models.ALIASES] if _is_version(name)]
    print("versions and other names of these:")
    print(fill(" ".join(others), 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
    if why:
        print(f"what this host's KVM can give of them is not known: {why}")
    print("all: the host has every feature of the model; kvmkit cpu show MODEL names those that it lacks")
    return 0


def _is_version(name: str) -> bool:
    from kvmkit.accel.models import ALIASES

    return name in ALIASES or (name[-3:-1] == "-v" and not name.startswith("x86-64"))


def _word(lacking: list[str] | None) -> str:
    return "?" if lacking is None else f"lacks {len(lacking)}" if lacking else "all"


def _show(args: argparse.Namespace) -> int:
    from kvmkit.accel.cpuid import has, missing, parse, select
    from kvmkit.accel.features import FEATURES
    from kvmkit.errors import BadInput

    parse(args.model)
    engines, why = _engines()
    told = {}
    for engine, table in engines.items():
        if table is None or args.accel not in (None, engine):
            continue
        try:
            chosen = select(args.model, table)
        except BadInput as error:
            if args.accel:
                raise
            told[engine] = {"features": [], "missing": [], "refused": str(error)}
            continue
        seen = [name for name in FEATURES if has(chosen, name)]
        told[engine] = {"features": seen, "missing": missing(args.model, table)}
    if args.accel and not told:
        raise BadInput(why)
    if args.json:
        print(json.dumps({"model": args.model, "engines": told, "reason": why}, indent=2))
        return 0
    for engine, row in told.items():
        if "refused" in row:
            print(f"on {engine}: {row['refused']}")
            continue
        print(f"--cpu {args.model} on {engine} shows a guest {len(row['features'])} features:")
        for label, names in (("", row["features"]), ("of the model this host lacks: ", row["missing"])):
            if names:
                text = label + " ".join(names)
                print(fill(text, 100, initial_indent="  ", subsequent_indent="  ", break_on_hyphens=False))
        nested = "vmx" in row["features"] or "svm" in row["features"]
        print(f"  nested VMs: {'a guest can run KVM itself' if nested else 'no (neither vmx nor svm)'}")
    if why:
        print(f"on kvm: not known: {why}")
    return 0
