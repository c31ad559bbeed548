"""`kvmkit host undo`: take back the last change, or all."""

from __future__ import annotations

from kvmkit.errors import HostError
from kvmkit.host.context import Context
from kvmkit.host.journal import Journal
from kvmkit.host.plan import Plan, check_undo, undo_entries


def undo(context: Context, journal: Journal, everything: bool) -> Plan:
    entries = journal.entries if everything else journal.entries[-1:]
    if not entries:
        raise HostError("kvmkit changed nothing on this host; there is nothing to undo")
    plan = undo_entries(context.host, entries)
    check_undo(context.host, plan)
    return plan
