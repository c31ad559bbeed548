"""`kvmkit cp`: files and directories into a guest and out of it."""

from __future__ import annotations

import argparse

from kvmkit.cli.verbs import VERBS
from kvmkit.errors import BadInput

SUMMARY = VERBS["cp"].summary

EPILOG = """\
examples:
  kvmkit cp notes.txt web:/root/           into the guest
  kvmkit cp web:/var/log/syslog .          out of it
  kvmkit cp src web:/root/                 a directory, with all that is in it
  kvmkit cp web:/etc etc-of-web            likewise; not over a directory that is there

A target that is a directory is copied into. A name of this host with a colon: ./a:b.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kvmkit cp SOURCE TARGET      one of them NAME:PATH"
    parser.epilog = EPILOG
    parser.add_argument("source", metavar="SOURCE", help="PATH, or NAME:PATH in the guest of a VM that runs")
    parser.add_argument("target", metavar="TARGET", help="the same")


def run(args: argparse.Namespace) -> int:
    from pathlib import Path

    from kvmkit.cli.main import say
    from kvmkit.manager import copy
    from kvmkit.manager.home import open_home

    source, target = _split(args.source), _split(args.target)
    if (source is None) == (target is None):
        raise BadInput("one of SOURCE and TARGET is NAME:PATH, the other a path on this host (see `kvmkit help cp`)")
    if source is not None:
        with open_home(source[0]) as home:
            for line in copy.get(home, source[1], Path(args.target)):
                say(line)
    elif target is not None:
        with open_home(target[0]) as home:
            copy.put(home, Path(args.source), target[1])
    return 0


def _split(text: str) -> tuple[str, str] | None:
    """(NAME, PATH) of NAME:PATH."""
    name, colon, path = text.partition(":")
    if not colon or "/" in name:
        return None
    if not name or not path:
        raise BadInput(f"{text}: give NAME:PATH")
    return name, path
