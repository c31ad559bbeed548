"""kvmkit: a hypervisor you can import."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from kvmkit.manager.vm import VM as VM

__version__ = "0.1.0"


def __getattr__(name: str) -> Any:
    """`kvmkit.VM`, imported when it is asked for: `kvmkit --version` needs nothing."""
    if name == "VM":
        from kvmkit.manager.vm import VM

        return VM
    raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
