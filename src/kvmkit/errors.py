"""What kvmkit tells its user when something can't be done: one line, an exit status, no traceback."""

from __future__ import annotations

BAD_INPUT = 2


class KvmkitError(Exception):
    """Something the user can act on. `str(error)` is one line: what, where, and what to do."""

    exit_status = 1


class BadInput(KvmkitError):
    """An argument, file or spec that can't be right; found before anything starts."""

    exit_status = BAD_INPUT


class HostError(KvmkitError):
    """The host lacks or refuses something (a package, a permission, memory)."""


class GuestFault(KvmkitError):
    """The guest did what no machine can go on from; `report` is several lines: reason, registers, code."""

    def __init__(self, message: str, report: str = "") -> None:
        super().__init__(message)
        self.report = report
