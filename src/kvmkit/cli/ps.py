"""`kvmkit ps`: the VMs of this user."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.listing import Row

SUMMARY = VERBS["ps"].summary

EPILOG = """\
examples:
  kvmkit ps              the VMs that run: CPU on average since the start, memory in use and given, time since start
  kvmkit ps -a           those that don't, too, and why
  kvmkit ps -aq          names alone
  kvmkit ps --json       for programs: sizes in bytes, times in seconds

states: created, starting, running, paused, stopping; stopped (the guest or its user ended it), failed (neither did),
died (its process ended without a word).
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("--all", "-a", action="store_true", help="also those that don't run")
    parser.add_argument("--quiet", "-q", action="store_true", help="print names alone")
    parser.add_argument("--json", action="store_true", help="print them as JSON")


def run(args: argparse.Namespace) -> int:
    from kvmkit.manager.listing import rows

    found = rows(everything=args.all)
    if args.json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
    elif args.quiet:
        sys.stdout.write("".join(f"{row.name}\n" for row in found))
    else:
        sys.stdout.write(table(found))
    return 0


HEAD = ("NAME", "STATE", "ENGINE", "CPUS", "CPU%", "USED", "GIVEN", "HUGE", "UP", "ADDRESS", "")
PAGES = HEAD.index("HUGE")


def table(found: list[Row], *, huge: bool = False) -> str:
    """`huge`: with the huge pages of each."""
    lines: list[tuple[str, ...]] = [HEAD if huge else (*HEAD[:PAGES], *HEAD[PAGES + 1 :])]
    for row in found:
        alive = row.pid > 0
        reason = "" if row.ended is None else row.ended.reason
        detail = f": {row.ended.detail}" if row.ended is not None and row.ended.detail else ""
        shown = (
            row.name,
            row.state,
            row.engine or "-",
            str(row.cpus or "-"),
            f"{row.cpu_percent:.1f}" if alive else "-",
            size(row.memory_used) if alive else "-",
            size(row.memory_given) if row.memory_given else "-",
            *([_pages(row)] if huge else []),
            duration(row.uptime) if alive else "-",
            ",".join(row.addresses) or "-",
            "in the foreground" if alive and row.foreground else f"{reason}{detail}",
        )
        lines.append(tuple("".join(c if c.isprintable() else "?" for c in text) for text in shown))
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "".join("  ".join(f"{text:<{width}}" for text, width in zip(line, widths, strict=True)).rstrip() + "\n"
                   for line in lines)  # fmt: skip


def _pages(row: Row) -> str:
    held = [f"{count}x{size}" for size, count in row.huge_pages.items()]
    return " ".join(held + ([f"{size(row.transparent)} thp"] if row.transparent else [])) or "-"


def size(count: float) -> str:
    """Bytes in the largest unit that leaves a number of 1 or more: 512M, 1.5G."""
    units = ["", "K", "M", "G", "T"]
    while count >= 1024 and len(units) > 1:
        count /= 1024
        units.pop(0)
    unit = units[0]
    return f"{count:.0f}{unit}" if count >= 10 or count == int(count) else f"{count:.1f}{unit}"


def duration(seconds: float) -> str:
    """41s, 12m05s, 3h20m, 5d02h."""
    whole = int(seconds)
    if whole < 60:
        return f"{whole}s"
    if whole < 3600:
        return f"{whole // 60}m{whole % 60:02}s"
    if whole < 86400:
        return f"{whole // 3600}h{whole % 3600 // 60:02}m"
    return f"{whole // 86400}d{whole % 86400 // 3600:02}h"
