"""One VM as `kvmkit ps` and `kvmkit inspect` show it: from its directory and /proc, without asking its process.

So that a process that hangs hangs nobody else, and fifty are listed in the time of one.
"""

from __future__ import annotations

import os
import time

import msgspec

from kvmkit.manager.home import Home, homes
from kvmkit.manager.record import Ended, Record, process_stat


class Row(msgspec.Struct, kw_only=True):
    """Sizes are bytes, times seconds; `started` and `created` of the epoch. Numbers of a VM that runs; else 0."""

    name: str
    state: str
    """created, starting, running, paused, stopping, stopped, failed, died."""
    engine: str = ""
    pid: int = 0
    cpus: int = 0
    cpu_seconds: float = 0.0
    cpu_percent: float = 0.0
    """Of one host CPU, on average since the start."""
    memory_used: int = 0
    """What the VM's process has in memory, the guest's RAM included."""
    memory_given: int = 0
    """Guest RAM, less what its balloon holds."""
    huge_pages: dict[str, int] = {}
    """Huge pages it holds by their size, such as {"2M": 512}. `kvmkit stats` alone looks for them."""
    transparent: int = 0
    """What of its memory is on transparent huge pages."""
    uptime: float = 0.0
    created: float = 0.0
    started: float = 0.0
    addresses: list[str] = []
    """Of its network cards, where they are known."""
    foreground: bool = False
    ended: Ended | None = None


LIVE = ("starting", "running", "paused", "stopping")


def rows(*, everything: bool, pages: bool = False) -> list[Row]:
    """All VMs, or those that run. `pages`: with their huge pages, which takes milliseconds for each."""
    found = [row(home, pages=pages) for home in homes()]
    return [each for each in found if everything or each.state in LIVE]


def row(home: Home, *, pages: bool = False) -> Row:
    noted = home.look()
    result = Row(
        name=home.name,
        state=state(noted),
        engine=noted.engine,
        cpus=noted.cpus,
        memory_given=noted.memory - noted.balloon,
        created=noted.created,
        started=noted.started,
        foreground=noted.foreground,
        ended=noted.ended,
    )
    if result.state in LIVE and noted.pid:
        _measure(result, noted)
        if pages and result.pid:
            _count_pages(result)
    return result


def state(noted: Record) -> str:
    """The word for a record that `Home.look` gave."""
    if noted.state != "ended" or noted.ended is None:
        return noted.state
    if noted.ended.reason == "died":
        return "died"
    return "stopped" if noted.ended.wanted else "failed"


def _count_pages(result: Row) -> None:
    from kvmkit.host import Host
    from kvmkit.host.pages import show_size
    from kvmkit.host.processes import huge_pages

    held, result.transparent = huge_pages(Host("/"), result.pid)
    result.huge_pages = {show_size(size): count for size, count in sorted(held.items())}


def _measure(result: Row, noted: Record) -> None:
    fields = process_stat(noted.pid)
    if not fields or int(fields[19]) != noted.ticks:
        return
    ticks = os.sysconf("SC_CLK_TCK")
    result.pid = noted.pid
    result.addresses = noted.addresses
    result.cpu_seconds = (int(fields[11]) + int(fields[12])) / ticks
    result.memory_used = int(fields[21]) * os.sysconf("SC_PAGE_SIZE")
    alive = time.clock_gettime(time.CLOCK_BOOTTIME) - noted.ticks / ticks
    result.uptime = max(time.time() - noted.started, 0.0)
    result.cpu_percent = round(100 * result.cpu_seconds / alive, 1) if alive > 0 else 0.0
