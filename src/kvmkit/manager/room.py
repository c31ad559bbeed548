"""Whether the host still has room for disks that qemu-storage-daemon serves.

A raw disk's write that fails is seen where it is made. What that daemon answers its guest is seen by nobody else, so
the file systems of its images are looked at.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmkit.machine import MachineSpec

SECONDS = 2.0
FULL_BYTES = 256 << 10
"""Less than an image takes for a cluster of data and what leads to it, QEMU's own being 64 KiB each."""
AGAIN_BYTES = 16 << 20
"""With so much, the next time that it is full is told of."""


class Room:
    """`tell` is called with a line for people when the file system of such a disk is full."""

    def __init__(self, spec: MachineSpec, tell: Callable[[str], None]) -> None:
        from kvmkit.block.formats import remote

        self._tell = tell
        self._told: set[str] = set()
        self._next = 0.0
        self._paths = [disk.path for disk in spec.disks if not disk.readonly and not remote(disk.path) and disk.served]

    def look(self, now: float) -> float | None:
        """Look, where it is time to; when to be called again."""
        if not self._paths:
            return None
        if now >= self._next:
            self._next = now + SECONDS
            for path in self._paths:
                self._look_at(path)
        return self._next

    def _look_at(self, path: str) -> None:
        try:
            found = os.statvfs(path)
        except OSError:
            return
        if not found.f_blocks:
            return  # it does not tell
        room = (found.f_bavail if os.geteuid() else found.f_bfree) * found.f_frsize  # root has what is kept for it
        if room < FULL_BYTES and path not in self._told:
            self._told.add(path)
            self._tell(
                f"disk {path}: no space is left on the host's file system; a guest that writes new data there sees "
                "I/O errors"
            )
        elif room >= AGAIN_BYTES:
            self._told.discard(path)
