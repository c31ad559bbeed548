"""Inspect and configure the host: what a person checks and types by hand before the first VM.

Stands alone: nothing here knows a machine, a device or an engine. Checks are functions of a `Host` (this system, or a
recorded or prepared tree of files) that give `Row`s; changes are a `Plan` of steps, printed as they are then done and
journalled so that each can be undone byte for byte.
"""

from kvmkit.host.report import Report, Row, Speed
from kvmkit.host.system import Host

__all__ = ["Host", "Report", "Row", "Speed"]
