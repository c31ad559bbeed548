"""What the end of a machine means to its user: a reason, an exit status, and the guest's last words."""

from __future__ import annotations

import time
from typing import TYPE_CHECKING

from kvmkit.machine.end import EndReason
from kvmkit.manager.record import Ended

if TYPE_CHECKING:
    from kvmkit.machine import End, Machine

TIMED_OUT = 124
LAST_LINES = 20


def judge(machine: Machine, end: End) -> Ended:
    """`Ended` for a machine that has ended by itself or was stopped. See docs/exit-status.md."""
    status, reason, detail = 0, end.reason.value, end.detail
    wanted = end.wanted
    found = panic(machine)
    if end.reason is EndReason.DEBUG_EXIT:
        status = end.status & 0xFF
    elif end.reason is EndReason.TIMEOUT:
        status = TIMED_OUT
    elif found and end.reason is not EndReason.STOPPED:
        status, reason, detail, wanted = 1, "kernel panic", found, False
    elif not end.wanted:
        status = 1
    return Ended(reason=reason, status=status, detail=detail, at=time.time(), wanted=wanted)


def panic(machine: Machine) -> str:
    """What a Linux guest said it panicked of; empty when it did not say so in its last lines."""
    mark = "Kernel panic - not syncing: "
    lines = machine.console.text(100).split("\n")
    return next((line.partition(mark)[2].strip() for line in reversed(lines) if mark in line), "")


def last_words(machine: Machine) -> str:
    """The end of the console, unless it was on the terminal anyway."""
    text = "" if machine.spec.console == "attach" else machine.console.text(LAST_LINES)
    shown = "".join(c if c.isprintable() or c in "\n\t" else "?" for c in text)
    return f"the end of the guest's console:\n{shown}" if text.strip() else ""
