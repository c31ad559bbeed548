"""What a device is given: an interrupt line, a clock, somebody who looks at its deadline again."""

from __future__ import annotations

from collections.abc import Callable
from typing import Protocol, TypeAlias

SECOND = 1_000_000_000
"""Nanoseconds."""

Line: TypeAlias = Callable[[int], None]
"""Sets an interrupt line to 0 or 1. It may be called again while a call is under way, from another thread."""

Clock: TypeAlias = Callable[[], int]
"""Nanoseconds: since 1970 for a clock of the day, since any moment for one that only goes forward."""


def unconnected(level: int) -> None:
    """A line that leads nowhere."""


def nobody() -> None:
    """Somebody who is told, and is not there."""


class Timed(Protocol):
    """A device that must be looked at when its time has come."""

    rearm: Callable[[], None]
    """The device calls this when its deadline may have come nearer."""

    def deadline(self) -> int | None:
        """In how many nanoseconds `expire` is to be called; None: no interrupt can come from time alone."""

    def expire(self) -> None:
        """Raise what has fallen due."""


class OutputLine:
    """Calls `line` when a device's level changes, in the right order also when two vCPUs touch one device.

    A line may let other threads run (engines release the GIL in it). `update` is then entered again, and leaves the
    new level to the thread that is at it already.
    """

    def __init__(self, line: Line = unconnected) -> None:
        self.line = line
        self.level = 0
        self._wanted = 0
        self._busy = False

    def update(self, level: int) -> None:
        self._wanted = 1 if level else 0
        if self._busy:
            return
        self._busy = True
        try:
            while self.level != self._wanted:
                self.level = self._wanted
                self.line(self.level)
        finally:
            self._busy = False
