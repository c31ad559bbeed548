"""`kvmkit pause`: hold VMs where they are."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli import named
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SUMMARY = VERBS["pause"].summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: kvmkit pause web\n\nA VM that is paused keeps its memory and uses no CPU."
    named.several(parser)


def run(args: argparse.Namespace) -> int:
    from kvmkit.manager import control

    def pause(home: Home) -> None:
        control.ask(home, "pause")

    return named.each(args.names, pause)
