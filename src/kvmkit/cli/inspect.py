"""`kvmkit inspect`: all that is known of VMs."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING, Any

from kvmkit.cli import named
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SUMMARY = VERBS["inspect"].summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "It prints JSON, a list with an object for each VM.\n\nexample: kvmkit inspect web"
    named.several(parser)


def run(args: argparse.Namespace) -> int:
    import msgspec

    found: list[dict[str, Any]] = []
    status = named.each(args.names, lambda home: found.append(describe(home)))
    sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    return status


def describe(home: Home) -> dict[str, Any]:
    import msgspec

    from kvmkit.errors import KvmkitError
    from kvmkit.manager import control, files, listing
    from kvmkit.manager.home import SPEC

    row = listing.row(home)
    told: dict[str, Any] = {**msgspec.to_builtins(row), "directory": str(home.path)}
    try:
        told["spec"] = msgspec.json.decode(files.read(home.directory, SPEC))
    except (OSError, msgspec.DecodeError) as error:
        told["spec"] = {"error": str(error)}
    if row.state in listing.LIVE:
        try:
            told["live"] = control.ask(home, "stats", timeout=2.0)
        except KvmkitError as error:
            told["live"] = {"error": str(error)}
    return told
