"""`kvmkit exec`: a command in a VM that runs."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli import named
from kvmkit.cli.parser import seconds
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.home import Home
    from kvmkit.manager.imagesettings import Settings

SUMMARY = VERBS["exec"].summary
TAKES_COMMAND = True

DESCRIPTION = """\
Run COMMAND in the guest of a VM that runs; its input, output and exit status are yours. It is ended when this ends.
Without COMMAND: a shell on a terminal."""

EPILOG = """\
examples:
  kvmkit exec web -- uname -a
  kvmkit exec -it web                       a shell
  tar c . | kvmkit exec -i web -- tar x -C /root
  kvmkit exec -e LANG=C -w /tmp web -- make
  kvmkit exec -u nobody web -- id

A guest that is starting is waited for. Ctrl-] x leaves a terminal (-t).
exit status: COMMAND's; 1 kvmkit or the guest failed; 2 bad input; 124 --timeout.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kvmkit exec [options] NAME [--] COMMAND ..."
    parser.epilog = EPILOG
    parser.add_argument("--interactive", "-i", action="store_true", help="pass on standard input (default: with -t)")
    parser.add_argument("--tty", "-t", action="store_true", help="give COMMAND a terminal")
    parser.add_argument("--env", "-e", action="append", default=[], metavar="NAME=VALUE", help="set it for COMMAND")
    parser.add_argument("--workdir", "-w", default="", metavar="DIR", help="where COMMAND starts (default: /)")
    parser.add_argument(
        "--user", "-u", default="", metavar="USER", help="who runs COMMAND, by name or number (default: root)"
    )
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="end COMMAND after that long")
    named.one(parser)
    parser.add_argument("words", nargs=argparse.REMAINDER, metavar="COMMAND", help="the command and its arguments")


def run(args: argparse.Namespace) -> int:
    from kvmkit.cli import attach
    from kvmkit.errors import BadInput
    from kvmkit.manager.home import open_home

    env = {}
    for text in args.env:
        name, equals, value = text.partition("=")
        if not name or not equals:
            raise BadInput(f"--env {text}: give NAME=VALUE")
        env[name] = value
    command = args.words + (["--"] if args.words and args.command else []) + (args.command or [])
    with open_home(args.name) as home:
        settings = _settings(home)
        return attach.execute(
            home,
            command,
            env={**settings.env, **env},
            cwd=args.workdir or settings.cwd,
            user=args.user or settings.user,
            tty=args.tty,
            interactive=args.interactive or args.tty,
            timeout=args.timeout,
        )


def _settings(home: Home) -> Settings:
    """What the VM's image says of commands in it."""
    from kvmkit.manager import imagesettings

    return imagesettings.of(home.spec().image, home.path)
