"""`kvmkit stats`: what running VMs use."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from kvmkit.cli.parser import seconds
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.listing import Row

SUMMARY = VERBS["stats"].summary

EPILOG = """\
examples:
  kvmkit stats                    every VM that runs: CPU over a fifth of a second, memory, huge pages it holds
  kvmkit stats --watch web db     these, again every second, until Ctrl-C
  kvmkit stats --watch --every 5 --json    a JSON list a line

HUGE is how many reserved huge pages of a size the VM has touched so far (512x2M), or how much of its memory is on
transparent ones (64M thp).
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument(
        "names", nargs="*", metavar="NAME", help="the VM's name; may be several (default: all that run)"
    )
    parser.add_argument("--watch", action="store_true", help="again and again, until Ctrl-C")
    parser.add_argument("--every", type=seconds, default=1.0, metavar="SECONDS", help="how often (default: 1)")
    parser.add_argument("--json", action="store_true", help="print JSON, a list a line")


FIRST_SECONDS = 0.2


def run(args: argparse.Namespace) -> int:
    before = _rows(args.names)
    began = time.monotonic()
    wait = FIRST_SECONDS
    clear = args.watch and sys.stdout.isatty()
    while True:
        time.sleep(wait)
        now = time.monotonic()
        rows = _rows(args.names)
        _percent(rows, before, now - began)
        before, began, wait = rows, now, args.every
        _show(rows, clear=clear, as_json=args.json)
        if not args.watch or (args.names and not any(row.pid for row in rows)):
            return 0


def _rows(names: list[str]) -> list[Row]:
    from kvmkit.manager import listing
    from kvmkit.manager.home import open_home

    if not names:
        return listing.rows(everything=False, pages=True)
    found = []
    for name in names:
        with open_home(name) as home:
            found.append(listing.row(home, pages=True))
    return found


def _percent(rows: list[Row], before: list[Row], elapsed: float) -> None:
    """CPU in the time between two looks, in place of the average since the start."""
    known = {(row.name, row.pid): row.cpu_seconds for row in before}
    for row in rows:
        was = known.get((row.name, row.pid))
        if was is not None and row.pid:
            row.cpu_percent = round(100 * max(row.cpu_seconds - was, 0.0) / elapsed, 1)


def _show(rows: list[Row], *, clear: bool, as_json: bool) -> None:
    from kvmkit.cli.ps import table

    if as_json:
        import msgspec

        text = msgspec.json.encode(rows).decode() + "\n"
    else:
        text = table(rows, huge=True)
    sys.stdout.write(f"\x1b[H\x1b[J{text}" if clear else text)
    sys.stdout.flush()
