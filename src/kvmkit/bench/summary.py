"""Least, median and most of a few measurements, ratios pair by pair, and tables for people."""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from typing import IO

import msgspec


class Spread(msgspec.Struct, frozen=True):
    """Of a few measurements of one thing."""

    min: float
    median: float
    max: float

    def shown(self, digits: int = 0) -> str:
        return " / ".join(f"{value:,.{digits}f}" for value in (self.min, self.median, self.max))


def spread(values: Sequence[float]) -> Spread | None:
    """None when there is nothing to tell of."""
    return Spread(min(values), statistics.median(values), max(values)) if values else None


def pairs(first: Sequence[float | None], second: Sequence[float | None]) -> Spread | None:
    """first / second, round by round; rounds in which one is missing are left out."""
    return spread([a / b for a, b in zip(first, second, strict=True) if a is not None and b])


def shown(value: Spread | None, digits: int = 0) -> str:
    return "-" if value is None else value.shown(digits)


def table(heads: Sequence[str], rows: Sequence[Sequence[str]], stream: IO[str]) -> None:
    """A table: drawn on a terminal, plain columns in a pipe. The first column is the rows' names."""
    if stream.isatty():
        from rich.console import Console
        from rich.table import Table

        drawn = Table()
        for i, head in enumerate(heads):
            drawn.add_column(head, justify="right" if i else "left", no_wrap=True)
        for row in rows:
            drawn.add_row(*row)
        Console(file=stream, highlight=False).print(drawn)
        return
    widths = [max(len(line[i]) for line in (heads, *rows)) for i in range(len(heads))]
    for line in (heads, *rows):
        cells = [
            f"{cell:>{width}}" if i else f"{cell:<{width}}"
            for i, (cell, width) in enumerate(zip(line, widths, strict=True))
        ]
        print("  ".join(cells).rstrip(), file=stream)
