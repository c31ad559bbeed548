"""`kvmkit start`: run VMs in the background."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli import named
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SUMMARY = VERBS["start"].summary

EPILOG = """\
examples:
  kvmkit start web                  comes back when its first instruction runs
  kvmkit start --wait web           comes back when its guest can run commands
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    named.several(parser)
    parser.add_argument("--wait", "-w", action="store_true", help="wait until the guest can run commands")


def run(args: argparse.Namespace) -> int:
    return named.each(args.names, lambda home: start(home, wait=args.wait))


def start(home: Home, *, wait: bool = False) -> None:
    from kvmkit.manager import control
    from kvmkit.manager.spawn import spawn

    wanted = home.spec()
    if not home.running():
        wanted.machine(directory=home.path)  # an image that is not there is built now, where its progress is seen
    spawn(home)
    if wait and wanted.with_agent:
        control.ask(home, "ready", timeout=600.0)
