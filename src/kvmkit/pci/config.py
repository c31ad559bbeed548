"""A function's configuration space: 4096 bytes, which of their bits a guest may change, and who wants to know.

Source: PCI Local Bus 3.0, chapter 6; PCI Express Base 5.0, 7.5 (type 0 header) and 7.5.3 (PCI Express capability).
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from enum import IntEnum, IntFlag
from typing import NamedTuple

from kvmkit.bus import Device
from kvmkit.errors import BadInput

CONFIG_BYTES = 4096
PLAIN_BYTES = 256
"""What the older access by ports reaches, and where the list of capabilities lies."""
BARS = 6


class Reg(IntEnum):
    """Offsets in the header of type 0."""

    VENDOR = 0x00
    DEVICE = 0x02
    COMMAND = 0x04
    STATUS = 0x06
    REVISION = 0x08
    CLASS = 0x09
    CACHE_LINE = 0x0C
    LATENCY = 0x0D
    HEADER_TYPE = 0x0E
    BAR0 = 0x10
    SUBSYSTEM_VENDOR = 0x2C
    SUBSYSTEM = 0x2E
    CAPABILITIES = 0x34
    INTERRUPT_LINE = 0x3C
    INTERRUPT_PIN = 0x3D


class Command(IntFlag):
    IO = 1
    MEMORY = 2
    BUS_MASTER = 4
    PARITY = 1 << 6
    SERR = 1 << 8
    INTX_DISABLE = 1 << 10


COMMAND_BITS = int(
    Command.IO | Command.MEMORY | Command.BUS_MASTER | Command.PARITY | Command.SERR | Command.INTX_DISABLE
)


class Status(IntFlag):
    INTERRUPT = 1 << 3
    CAPABILITIES = 1 << 4


class Capability(IntEnum):
    VENDOR = 0x09
    EXPRESS = 0x10
    MSIX = 0x11


BAR_WIDE, BAR_PREFETCHABLE = 4, 8
BAR_FLAGS = 15
SMALLEST_BAR = 4096
"""A page, so that no two devices share one."""
LARGEST_BAR = 1 << 34
MULTI_FUNCTION = 0x80


@dataclass(frozen=True, slots=True)
class Identity:
    """What a driver is chosen by. `class_code` has three bytes: base class, subclass, programming interface."""

    vendor: int
    device: int
    class_code: int
    revision: int = 0
    subsystem_vendor: int = 0
    subsystem: int = 0


@dataclass(frozen=True, slots=True)
class Bar:
    """A base address register: `size` bytes (a power of two, a page at least) of memory where `device` answers.

    A `wide` one has 64 bits and takes the next index too.
    """

    index: int
    size: int
    device: Device
    wide: bool = False
    prefetchable: bool = False

    @property
    def offset(self) -> int:
        return Reg.BAR0 + 4 * self.index


class Hook(NamedTuple):
    """Who is called for a part of the space: before a read, so that it may put the value there; after a write."""

    start: int
    end: int
    before_read: Callable[[int, int], None] | None
    after_write: Callable[[int, int], None] | None


class ConfigSpace:
    """Registers as bytes. `data` holds the values; a bit is the guest's to write when it is set in `writable`."""

    def __init__(self, identity: Identity, *, interrupt_pin: int = 0, multi_function: bool = False) -> None:
        self.data = bytearray(CONFIG_BYTES)
        self.writable = bytearray(CONFIG_BYTES)
        self.hooks: list[Hook] = []
        self.bars: list[Bar] = []
        self._last_capability = 0
        self._free = 0x40
        self.put(Reg.VENDOR, 2, identity.vendor)
        self.put(Reg.DEVICE, 2, identity.device)
        self.put(Reg.COMMAND, 2, 0, COMMAND_BITS)
        self.put(Reg.REVISION, 1, identity.revision)
        self.put(Reg.CLASS, 3, identity.class_code)
        self.put(Reg.CACHE_LINE, 1, 0, 0xFF)
        self.put(Reg.HEADER_TYPE, 1, MULTI_FUNCTION if multi_function else 0)
        self.put(Reg.SUBSYSTEM_VENDOR, 2, identity.subsystem_vendor)
        self.put(Reg.SUBSYSTEM, 2, identity.subsystem)
        self.put(Reg.INTERRUPT_LINE, 1, 0xFF, 0xFF)
        self.put(Reg.INTERRUPT_PIN, 1, interrupt_pin)

    # What a device declares.

    def get(self, offset: int, size: int) -> int:
        """The value of `size` bytes at `offset`, without telling anybody."""
        return int.from_bytes(self.data[offset : offset + size], "little")

    def put(self, offset: int, size: int, value: int, writable: int | None = None) -> None:
        """Set a value whatever the guest may do; `writable` also sets which bits it may change."""
        self.data[offset : offset + size] = value.to_bytes(size, "little")
        if writable is not None:
            self.writable[offset : offset + size] = writable.to_bytes(size, "little")

    def add_bar(self, bar: Bar) -> None:
        """Declare a BAR. Raises BadInput for a size or a place it can't have."""
        if bar.size & (bar.size - 1) or not SMALLEST_BAR <= bar.size <= LARGEST_BAR:
            raise BadInput(f"a BAR of {bar.size:#x} bytes: a power of two from {SMALLEST_BAR:#x} can be")
        if not bar.wide and bar.size > 1 << 30:
            raise BadInput(f"a 32-bit BAR of {bar.size:#x} bytes: up to 1 GiB can be")
        taken = {index for other in self.bars for index in range(other.index, other.index + 1 + other.wide)}
        mine = set(range(bar.index, bar.index + 1 + bar.wide))
        if mine & taken or not mine <= set(range(BARS)):
            raise BadInput(f"there is no room for BAR {bar.index}")
        flags = (BAR_WIDE if bar.wide else 0) | (BAR_PREFETCHABLE if bar.prefetchable else 0)
        width = 8 if bar.wide else 4
        self.put(bar.offset, width, flags, -bar.size & ((1 << 8 * width) - 1))
        self.bars.append(bar)

    def add_capability(self, kind: int, body: bytes, writable: bytes = b"", *, hook: bool = False) -> int:
        """Put a capability in the list; its offset. `body` follows the two bytes of header."""
        size = (2 + len(body) + 3) // 4 * 4
        offset = self._free
        if offset + size > PLAIN_BYTES:
            raise BadInput(f"there is no room for capability {kind:#x}")
        self._free += size
        self.data[offset : offset + 2] = bytes([kind, 0])
        self.data[offset + 2 : offset + 2 + len(body)] = body
        self.writable[offset + 2 : offset + 2 + len(writable)] = writable
        if self._last_capability:
            self.data[self._last_capability + 1] = offset
        else:
            self.data[Reg.CAPABILITIES] = offset
            self.put(Reg.STATUS, 2, self.get(Reg.STATUS, 2) | Status.CAPABILITIES)
        self._last_capability = offset
        return offset

    def watch(
        self,
        start: int,
        size: int,
        *,
        before_read: Callable[[int, int], None] | None = None,
        after_write: Callable[[int, int], None] | None = None,
    ) -> None:
        """Call these with (offset, size) of each access that touches [start, start + size)."""
        self.hooks.append(Hook(start, start + size, before_read, after_write))

    # What a guest does.

    def read(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; what lies past the end reads as ones."""
        for hook in self.hooks:
            if hook.before_read is not None and offset < hook.end and hook.start < offset + size:
                hook.before_read(offset, size)
        found = self.data[offset : offset + size]
        return int.from_bytes(found, "little") | (1 << 8 * size) - (1 << 8 * len(found))

    def write(self, offset: int, size: int, value: int) -> None:
        """Change the bits that may be changed; what lies past the end vanishes."""
        for i in range(offset, min(offset + size, CONFIG_BYTES)):
            mask = self.writable[i]
            if mask:
                self.data[i] = self.data[i] & ~mask | (value >> 8 * (i - offset)) & mask
        for hook in self.hooks:
            if hook.after_write is not None and offset < hook.end and hook.start < offset + size:
                hook.after_write(offset, size)

    # What the bridge wants to know.

    @property
    def command(self) -> Command:
        return Command(self.get(Reg.COMMAND, 2))

    def bar_address(self, bar: Bar) -> int:
        """Where the guest has put it, whether it is decoded or not."""
        return self.get(bar.offset, 8 if bar.wide else 4) & ~BAR_FLAGS

    def place_bar(self, bar: Bar, address: int) -> None:
        """What a firmware does."""
        width = 8 if bar.wide else 4
        self.put(bar.offset, width, address | self.get(bar.offset, width) & BAR_FLAGS)

    # Saved state.

    def state(self) -> bytes:
        return bytes(self.data)

    def restore(self, data: bytes) -> None:
        """Take the guest's bits from what `state` gave; the rest is the device's own. Nobody is called."""
        if len(data) != CONFIG_BYTES:
            raise BadInput(f"saved PCI configuration space of {len(data)} bytes: it has {CONFIG_BYTES}")
        for i, mask in enumerate(self.writable):
            if mask:
                self.data[i] = self.data[i] & ~mask | data[i] & mask
