"""The rows of a check, and how they are shown: plain text, colours on a terminal, JSON."""

from __future__ import annotations

import json
from dataclasses import asdict, dataclass, field
from typing import IO, Any, Literal

State = Literal["ok", "note", "warn", "fail", "unknown"]

MARKS: dict[str, str] = {"ok": "ok", "note": "-", "warn": "warn", "fail": "FAIL", "unknown": "?"}
STYLES: dict[str, str] = {"ok": "green", "note": "dim", "warn": "yellow", "fail": "bold red", "unknown": "cyan"}

ACCELERATED, SOFTWARE, NOTHING = 0, 1, 2
VERDICTS = {
    ACCELERATED: "VMs run accelerated by KVM here",
    SOFTWARE: "VMs run on the software CPU (tcg) only",
    NOTHING: "no VM can run here",
}


@dataclass(frozen=True)
class Row:
    """One thing looked at. `id` is stable, for scripts; `fix` is a command to type, or ''."""

    id: str
    group: str
    name: str
    state: State
    text: str
    fix: str = ""


@dataclass(frozen=True)
class Speed:
    """How fast /dev/kvm was when measured; made by whoever has an engine to measure with.

    `useful`: faster than the software CPU. `ring0` in instructions a second, `exit` in ns, None when not known."""

    useful: bool
    ring0: float | None = None
    exit: float | None = None
    text: str = ""


@dataclass
class Report:
    title: str
    rows: list[Row] = field(default_factory=list)
    status: int = 0
    verdict: str = ""

    def row(self, id: str) -> Row:
        for row in self.rows:
            if row.id == id:
                return row
        raise KeyError(id)

    def as_json(self) -> str:
        told: dict[str, Any] = {"status": self.status, "verdict": self.verdict, "rows": [asdict(r) for r in self.rows]}
        return json.dumps(told, indent=2, ensure_ascii=False)

    def lines(self) -> list[tuple[str, str]]:
        """(style, text) of each line; the style is '' for plain, 'group', 'fix', or a state."""
        width = max((len(row.name) for row in self.rows), default=0)
        lines: list[tuple[str, str]] = []
        group = None
        for row in self.rows:
            if row.group != group:
                group = row.group
                lines.append(("group", group))
            lines.append((row.state, f"  {MARKS[row.state]:<4}  {row.name:<{width}}  {row.text}"))
            if row.fix:
                lines.extend(("fix", f"        {'':<{width}}  > {line}") for line in row.fix.splitlines())
        if self.verdict:
            lines.append(("verdict", self.verdict))
        return lines

    def show(self, stream: IO[str]) -> None:
        if not stream.isatty():
            for _, text in self.lines():
                print(text, file=stream)
            return
        from rich.console import Console
        from rich.text import Text

        console = Console(file=stream, highlight=False)
        indent = 10 + max((len(row.name) for row in self.rows), default=0)
        for style, text in self.lines():
            shown = Text(_folded(text, indent, console.width) if style in STYLES else text)
            if style in STYLES:
                shown.stylize(STYLES[style], 2, 6)
                if style == "note":
                    shown.stylize("dim")
            elif style:
                shown.stylize({"group": "bold", "fix": "cyan"}.get(style, "bold"))
            console.print(shown, soft_wrap=True)  # a command stays one line, to be copied


def _folded(line: str, indent: int, width: int) -> str:
    """A row of a narrow terminal: its text goes on below where it began."""
    from textwrap import wrap

    if len(line) <= width or width < indent + 20:
        return line
    parts = wrap(line[indent:], width - indent, break_long_words=False, break_on_hyphens=False)
    return line[:indent] + f"\n{' ' * indent}".join(parts)
