"""`kvmkit rm`: remove VMs and all that is theirs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli import named
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SUMMARY = VERBS["rm"].summary

EPILOG = """\
examples:
  kvmkit rm web                     one that does not run
  kvmkit rm -f $(kvmkit ps -aq)     all, and end those that run
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("names", nargs="*", metavar="NAME", help="the VM's name; may be several")
    parser.add_argument("--force", "-f", action="store_true", help="end it first if it runs; no VM at all is no error")


def run(args: argparse.Namespace) -> int:
    from kvmkit.errors import BadInput
    from kvmkit.manager import control
    from kvmkit.manager.home import listing

    names = args.names
    if args.force:
        known = set(listing())
        names = [name for name in names if name in known]
    elif not names:
        raise BadInput("NAME is missing (see `kvmkit help rm`)")

    def remove(home: Home) -> None:
        if args.force and home.running():
            temporary = home.load().temporary
            control.destroy(home)
            if temporary and not home.path.exists():
                return  # it went by itself
        home.remove()

    return named.each(names, remove)
