"""PCI Express: a host bridge with one bus, the functions on it, and message-signalled interrupts.

A device is a `Function`: identity, BARs (each a bus `Device`), capabilities. `HostBridge` gives it a slot, decodes its
BARs in the machine's memory, and carries its interrupts. What the guest writes is never trusted: a BAR answers only
inside the bridge's windows, and never where something else does.
Source: PCI Local Bus 3.0 and PCI Express Base 5.0.
"""

from .bridge import HostBridge
from .config import Bar, ConfigSpace, Identity
from .function import Function

__all__ = ["Bar", "ConfigSpace", "Function", "HostBridge", "Identity"]
