"""`kvmkit rename`: another name for a VM."""

from __future__ import annotations

import argparse

from kvmkit.cli import named
from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["rename"].summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = (
        "example: kvmkit rename vm1 web\n\nIt may run meanwhile; the VMs on its networks then find it by the new name."
    )
    named.one(parser)
    parser.add_argument("new", metavar="NEW", help="the name it is to have")


def run(args: argparse.Namespace) -> int:
    from kvmkit.manager import control
    from kvmkit.manager.home import open_home

    with open_home(args.name) as home:
        control.rename(home, args.new)
    return 0
