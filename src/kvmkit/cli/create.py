"""`kvmkit create`: a VM that is to be started later."""

from __future__ import annotations

import argparse

from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["create"].summary
TAKES_COMMAND = True

EPILOG = """\
examples:
  kvmkit create --name web --memory 1G     then: kvmkit start web
  kvmkit create vm.toml                    what a file says
  kvmkit create -- make                    started, it runs make and ends; kvmkit logs shows what that said

It prints the VM's name. Nothing is built or started before `kvmkit start`.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    from kvmkit.cli.run import specification

    parser.usage = "kvmkit create [IMAGE | FILE] [options] [-- COMMAND ...]"
    parser.epilog = EPILOG
    parser.add_argument("--rm", action="store_true", help="remove the VM when it ends")
    specification(parser)


def run(args: argparse.Namespace) -> int:
    from kvmkit.cli.run import specified
    from kvmkit.manager import create

    with create.make(specified(args), temporary=args.rm) as home:
        print(home.name)
    return 0
