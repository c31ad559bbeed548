"""`kvmkit kill`: end VMs at once."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli import named
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SUMMARY = VERBS["kill"].summary

EPILOG = """\
examples:
  kvmkit kill web          as pulling the plug does: the guest can save nothing

A VM's process that does not answer within 5 s is sent SIGKILL.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    named.several(parser)


def run(args: argparse.Namespace) -> int:
    from kvmkit.manager import control

    def kill(home: Home) -> None:
        control.destroy(home)

    return named.each(args.names, kill)
