"""`kvmkit stop`: ask guests to power off, and end those that don't."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli import named
from kvmkit.cli.parser import seconds_or_none
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SUMMARY = VERBS["stop"].summary
STOP_SECONDS = 30.0

EPILOG = """\
examples:
  kvmkit stop web                   its agent is asked, or its power button pressed
  kvmkit stop --timeout 5 web db    those that still run after 5 s are ended as by pulling the plug

It comes back when they have ended. A VM that does not run is none that can't be stopped: status 0.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    named.several(parser)
    timeout(parser)


def timeout(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--timeout",
        "-t",
        type=seconds_or_none,
        default=STOP_SECONDS,
        metavar="SECONDS",
        help=f"how long the guest may take (default: {STOP_SECONDS:g})",
    )


def run(args: argparse.Namespace) -> int:
    return named.each(args.names, lambda home: stop(home, args.timeout))


def stop(home: Home, timeout: float) -> None:
    from kvmkit.manager import control

    control.until_end(home, "stop", timeout=timeout, deadline=timeout + 15)
