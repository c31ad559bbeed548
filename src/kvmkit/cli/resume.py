"""`kvmkit resume`: let paused VMs go on."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli import named
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SUMMARY = VERBS["resume"].summary


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = "example: kvmkit resume web"
    named.several(parser)


def run(args: argparse.Namespace) -> int:
    from kvmkit.manager import control

    def resume(home: Home) -> None:
        control.ask(home, "resume")

    return named.each(args.names, resume)
