"""A machine's states, and the ways in which it ends."""

from __future__ import annotations

from enum import Enum

from msgspec import Struct


class State(Enum):
    CREATED = "created"
    RUNNING = "running"
    PAUSED = "paused"
    ENDED = "ended"


class EndReason(Enum):
    POWEROFF = "power off"
    """The guest turned the machine off (ACPI S5, or a request to the hypervisor)."""
    RESET = "reset"
    """The guest reset it, and the spec has no `reboot`."""
    DEBUG_EXIT = "debug exit"
    """The guest wrote to the debug exit port; `End.status` is `(value << 1) | 1`."""
    SHUTDOWN = "triple fault"
    FAULT = "fault"
    """The engine, or a device here, can't go on."""
    STOPPED = "stopped"
    """`Machine.stop` was called."""
    TIMEOUT = "timeout"
    """The spec's `timeout` is over."""


class End(Struct, frozen=True):
    """`detail` is one line; `report` is several, for SHUTDOWN and FAULT: registers, code, stack."""

    reason: EndReason
    status: int = 0
    detail: str = ""
    report: str = ""

    @property
    def wanted(self) -> bool:
        """The guest or the user asked for it."""
        return self.reason not in (EndReason.SHUTDOWN, EndReason.FAULT, EndReason.TIMEOUT)
