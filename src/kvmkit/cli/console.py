"""`kvmkit console`: the serial console of a VM that runs."""

from __future__ import annotations

import argparse

from kvmkit.cli import named
from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["console"].summary

EPILOG = """\
examples:
  kvmkit console web               what it says, from a little before now; what is typed goes to it; Ctrl-] x leaves
  kvmkit console web < /dev/null   only look

Several may be attached to one console. Without a terminal it is shown until the VM ends.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    named.one(parser)


def run(args: argparse.Namespace) -> int:
    from kvmkit.cli import attach
    from kvmkit.manager.home import open_home

    with open_home(args.name) as home:
        return attach.console(home)
