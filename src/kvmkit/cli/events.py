"""`kvmkit events`: what happened to VMs."""

from __future__ import annotations

import argparse
import sys
import time
from typing import TYPE_CHECKING

from kvmkit.cli.parser import whole_number
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.events import Event

SUMMARY = VERBS["events"].summary

EPILOG = """\
examples:
  kvmkit events              what is noted: created, started, paused, resumed, rebooted, ended, died, renamed, removed
  kvmkit events -f web       what happens to web from now on
  kvmkit events --json       a JSON object a line
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("names", nargs="*", metavar="NAME", help="only of these VMs")
    parser.add_argument("--follow", "-f", action="store_true", help="show what happens from now on, until Ctrl-C")
    parser.add_argument("--lines", "-n", type=whole_number, metavar="N", help="only the last N")
    parser.add_argument("--json", action="store_true", help="print JSON, an object a line")


def run(args: argparse.Namespace) -> int:
    from kvmkit.manager import events
    from kvmkit.manager.listing import rows

    def wanted(event: Event) -> bool:
        return not args.names or event.vm in args.names

    rows(everything=True)  # notes the death of those that died
    if not args.follow or args.lines is not None:
        past = [event for event in events.past() if wanted(event)]
        for event in past if args.lines is None else past[-args.lines :] if args.lines > 0 else []:
            _show(event, as_json=args.json)
    if args.follow:
        sys.stdout.flush()
        for event in events.follow(lambda: rows(everything=False)):
            if wanted(event):
                _show(event, as_json=args.json)
                sys.stdout.flush()
    return 0


def _show(event: Event, *, as_json: bool) -> None:
    if as_json:
        import msgspec

        sys.stdout.write(msgspec.json.encode(event).decode() + "\n")
        return
    when = time.strftime("%Y-%m-%d %H:%M:%S", time.localtime(event.time))
    text = f"{when}  {event.vm}  {event.event}{f': {event.detail}' if event.detail else ''}"
    sys.stdout.write("".join(c if c.isprintable() else "?" for c in text) + "\n")
