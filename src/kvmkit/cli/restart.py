"""`kvmkit restart`: stop VMs, and start them."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli import named, start, stop
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SUMMARY = VERBS["restart"].summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: kvmkit restart --timeout 5 web"
    named.several(parser)
    stop.timeout(parser)


def run(args: argparse.Namespace) -> int:
    def restart(home: Home) -> None:
        stop.stop(home, args.timeout)
        start.start(home)

    return named.each(args.names, restart)
