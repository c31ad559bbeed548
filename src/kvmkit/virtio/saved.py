"""The form of saved states: what devices, queues and virtio-mmio give, checked before anything takes it."""

from __future__ import annotations

from typing import Annotated

import msgspec
from msgspec import Meta

U8 = Annotated[int, Meta(ge=0, le=0xFF)]
U16 = Annotated[int, Meta(ge=0, le=0xFFFF)]
U32 = Annotated[int, Meta(ge=0, le=0xFFFFFFFF)]
U64 = Annotated[int, Meta(ge=0)]
"""msgspec itself takes integers up to 2^64 - 1 and no larger ones."""


class QueueState(msgspec.Struct):
    size: U16
    ready: bool
    descriptors: U64
    driver: U64
    device: U64
    next_avail: U16
    next_used: U16
    avail_wrap: bool
    used_wrap: bool
    broken: str


class DeviceState(msgspec.Struct):
    kind: int
    accepted: U64
    status: U8
    generation: U32
    interrupt_status: U32
    failure: str
    queues: list[QueueState]


class ConsoleState(DeviceState):
    """`ports`: whether the driver is ready for each, and has it open."""

    ports: list[tuple[bool, bool]]


class FilterState(msgspec.Struct):
    """`modes` as kvmkit.net.filter has them; the addresses one behind the other; a bit for each VLAN."""

    modes: Annotated[list[bool], Meta(min_length=6, max_length=6)]
    unicast: bytes
    multicast: bytes
    vlans: Annotated[bytes, Meta(min_length=512, max_length=512)]


class CardState(msgspec.Struct):
    mac: Annotated[bytes, Meta(min_length=6, max_length=6)]
    pairs: Annotated[int, Meta(ge=1, le=0x8000)]
    link: bool
    filter: FilterState


class NetState(DeviceState):
    net: CardState


class MmioState(msgspec.Struct):
    """`queues`: size, descriptors, driver area, device area."""

    device_page: U32
    driver_page: U32
    driver_features: U64
    selected: Annotated[int, Meta(ge=-1, le=0xFFFF)]
    queues: list[tuple[U32, U64, U64, U64]]
