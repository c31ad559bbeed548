"""The virtio devices a machine can have, as data, and how each is made."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING, TypeAlias

import msgspec

if TYPE_CHECKING:
    from kvmkit.memory import GuestMemory
    from kvmkit.virtio.device import VirtioDevice

Log: TypeAlias = Callable[[str], None]
"""Told in a line what a guest did wrong."""


class RngSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True, tag="rng"):
    """Random bytes of the host's."""

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be."""


DeviceSpec: TypeAlias = RngSpec


def make(spec: DeviceSpec, memory: GuestMemory, number: int, log: Log | None) -> VirtioDevice:
    """The device a spec asks for; `number` tells it from others of its kind. Raises BadInput or HostError."""
    from kvmkit.virtio.rng import Rng

    return Rng(memory, name=f"rng{number}", log=log)
