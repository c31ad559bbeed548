"""Feature bits that belong to no device in particular. Source: virtio 1.2, 6."""

from __future__ import annotations

INDIRECT_DESC = 1 << 28
EVENT_IDX = 1 << 29
VERSION_1 = 1 << 32
RING_PACKED = 1 << 34
IN_ORDER = 1 << 35
NOTIFICATION_DATA = 1 << 38
RING_RESET = 1 << 40

RING = INDIRECT_DESC | EVENT_IDX | VERSION_1 | RING_PACKED | IN_ORDER | RING_RESET
"""What every device's queues can do here. Not NOTIFICATION_DATA: a doorbell whose value differs at each ring can't
be matched by the kernel, and would cost an exit; it is offered where a user asks for it."""
