"""`kvmkit logs`: what a VM's console said."""

from __future__ import annotations

import argparse

from kvmkit.cli import named
from kvmkit.cli.parser import whole_number
from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["logs"].summary

EPILOG = """\
examples:
  kvmkit logs web                what its console said, and the output of its command (the last 1 to 2 MiB are kept)
  kvmkit logs -f -n 20 web       the last 20 lines, and what comes until it ends
  kvmkit logs --process web      what its process on the host said: warnings, a crash

On a terminal, control characters are shown as ? and not obeyed; colours are.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--follow", "-f", action="store_true", help="go on until the VM ends")
    parser.add_argument("--lines", "-n", type=whole_number, metavar="N", help="only the last N lines of what there is")
    parser.add_argument("--process", action="store_true", help="the log of the VM's process instead")
    named.one(parser)


def run(args: argparse.Namespace) -> int:
    import os

    from kvmkit.manager import logs
    from kvmkit.manager.home import CONSOLE, PROCESS, open_home

    plain = os.isatty(1)
    with open_home(args.name) as home:
        name = PROCESS if args.process else CONSOLE
        for data in logs.read(home, name, follow=args.follow, lines=args.lines):
            view = memoryview(logs.harmless(data) if plain else data)
            while view:
                view = view[os.write(1, view) :]
    return 0
