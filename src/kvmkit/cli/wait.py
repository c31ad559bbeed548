"""`kvmkit wait`: until VMs have ended."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli import named
from kvmkit.cli.parser import seconds
from kvmkit.cli.verbs import VERBS
from kvmkit.errors import KvmkitError

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

SUMMARY = VERBS["wait"].summary

EPILOG = """\
examples:
  kvmkit wait build                 prints why it ended; its exit status is the VM's
  kvmkit wait --ready web           until its guest can run commands
  kvmkit wait --timeout 60 build    for a minute at most

exit status: what `kvmkit run` would have had: the command's, 0 when the guest powered off, 1 when it failed or its
process died; 124 --timeout. Of several VMs, the highest.
"""


class TimedOut(KvmkitError):
    exit_status = 124


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    named.several(parser)
    parser.add_argument("--ready", action="store_true", help="wait until its guest can run commands instead")
    parser.add_argument("--timeout", type=seconds, metavar="SECONDS", help="wait no longer, and exit with 124")


def run(args: argparse.Namespace) -> int:
    import time

    from kvmkit.manager import control
    from kvmkit.manager.wire import Refused

    end = None if args.timeout is None else time.monotonic() + args.timeout

    def wait(home: Home) -> int:
        left = None if end is None else max(end - time.monotonic(), 0.01)
        late = TimedOut(f"{home.name}: --timeout {args.timeout or 0:g} s are over")
        try:
            if args.ready:
                control.ask(home, "ready", timeout=left or 600.0)
                return 0
            ended = control.until_end(home, "wait", deadline=left)
        except Refused:
            if end is not None and time.monotonic() >= end:
                raise late from None
            raise
        print(f"{home.name}: {ended.reason}{f': {ended.detail}' if ended.detail else ''}", flush=True)
        return ended.status

    return named.each(args.names, wait)
