"""What verbs that take the names of VMs have in common."""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterable
from typing import TYPE_CHECKING

from kvmkit.errors import KvmkitError

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SHELL = ["/bin/sh", "-c", "exec $(command -v bash || echo sh) -l"]
"""The best shell that a guest has, as a login shell."""


def one(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="the VM's name")


def several(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("names", nargs="+", metavar="NAME", help="the VM's name; may be several")


def each(names: Iterable[str], do: Callable[[Home], int | None]) -> int:
    """Do it for each VM; one that fails is told of, and does not keep the others from it. The worst exit status."""
    from kvmkit.cli.main import say
    from kvmkit.manager.home import open_home

    names = list(dict.fromkeys(names))
    worst = 0
    for name in names:
        try:
            with open_home(name) as home:
                worst = max(worst, do(home) or 0)
        except KvmkitError as error:
            if len(names) == 1:
                raise
            say(str(error))
            worst = max(worst, error.exit_status)
    return worst
