"""Show how far a long step is: a bar on a terminal, nothing in a pipe."""

from __future__ import annotations

import sys
from types import TracebackType
from typing import TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.progress import Progress as RichProgress
    from rich.progress import TaskID


class Progress(Protocol):
    def step(self, text: str) -> None:
        """What is done from now on, in a few words."""

    def advance(self, done: int, total: int) -> None:
        """How much of the step is done; the unit is the step's own."""

    def close(self) -> None:
        """Leave the terminal as it was. Called again, does nothing."""


class Silent:
    def step(self, text: str) -> None: ...
    def advance(self, done: int, total: int) -> None: ...
    def close(self) -> None: ...


class TerminalProgress:
    """One line on standard error, drawn by rich and removed at the end."""

    def __init__(self) -> None:
        self._bar: RichProgress | None = None
        self._task: TaskID | None = None

    def step(self, text: str) -> None:
        if self._bar is None:
            from rich.console import Console  # not paid for by those who have the image already
            from rich.progress import BarColumn, Progress, TaskProgressColumn, TextColumn, TimeElapsedColumn

            columns = (TextColumn("{task.description}"), BarColumn(), TaskProgressColumn(), TimeElapsedColumn())
            self._bar = Progress(*columns, console=Console(stderr=True), transient=True)
            self._bar.start()
        if self._task is not None:
            self._bar.remove_task(self._task)
        self._task = self._bar.add_task(text, total=None)

    def advance(self, done: int, total: int) -> None:
        if self._bar is not None and self._task is not None:
            self._bar.update(self._task, completed=done, total=total)

    def close(self) -> None:
        if self._bar is not None:
            self._bar.stop()
        self._bar = self._task = None


class Shown:
    """`with Shown() as progress:` picks what suits standard error."""

    def __enter__(self) -> Progress:
        self._progress: Progress = TerminalProgress() if sys.stderr.isatty() else Silent()
        return self._progress

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._progress.close()
