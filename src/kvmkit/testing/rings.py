"""The driver's side of a virtqueue, in plain Python, in guest memory. Source: virtio 1.2, 2.7 and 2.8.

Written from the driver's requirements alone and sharing nothing with `kvmkit.virtio`, so that one checks the other.
"""

from __future__ import annotations

import struct
from collections.abc import Sequence
from typing import TypeAlias

from kvmkit.memory import GuestMemory

NEXT, WRITE, INDIRECT = 1, 2, 4
AVAILABLE, USED = 1 << 7, 1 << 15

Part: TypeAlias = "tuple[int, int, bool]"
"""(guest physical address, bytes, the device writes it)."""


class BadRing(Exception):
    """The device did what its side of the ring may not."""


class Ring:
    """Common to both formats. The three areas stand from `base` on; `bytes_needed` says how far they reach."""

    def __init__(self, memory: GuestMemory, base: int, size: int, *, event_index: bool = False) -> None:
        self.memory = memory
        self.size = size
        self.event_index = event_index
        self.descriptors = base
        self.free = size

    def _u16(self, address: int) -> int:
        return int.from_bytes(self.memory.read(address, 2), "little")

    def _put16(self, address: int, value: int) -> None:
        self.memory.write(address, struct.pack("<H", value & 0xFFFF))


class SplitRing(Ring):
    """`add` requests, `publish` them, ring the doorbell if `publish` says so, then `collect` what came back."""

    def __init__(self, memory: GuestMemory, base: int, size: int, *, event_index: bool = False) -> None:
        super().__init__(memory, base, size, event_index=event_index)
        self.driver = base + 16 * size
        self.device = (self.driver + 6 + 2 * size + 3) & ~3
        self.end = self.device + 6 + 8 * size
        memory.write(base, bytes(self.end - base))
        self._free = list(range(size))
        self._requests: dict[int, list[int]] = {}
        self._added = self._shown = self._seen = 0

    def add(self, parts: Sequence[Part], table: int | None = None) -> int:
        """Offer a chain and give its number; with `table`, by an indirect table that is put at that address."""
        if table is not None:
            data = b"".join(
                struct.pack(
                    "<QIHH", address, length, (WRITE if write else 0) | (NEXT if i + 1 < len(parts) else 0), i + 1
                )
                for i, (address, length, write) in enumerate(parts)
            )
            self.memory.write(table, data)
            entries = [(table, len(data), INDIRECT)]
        else:
            entries = [(address, length, WRITE if write else 0) for address, length, write in parts]
        if len(entries) > len(self._free):
            raise ValueError("the ring is full")
        numbers = [self._free.pop() for _ in entries]
        self.free = len(self._free)
        for i, (number, (address, length, flags)) in enumerate(zip(numbers, entries, strict=True)):
            following = numbers[i + 1] if i + 1 < len(numbers) else 0
            more = NEXT if i + 1 < len(numbers) else 0
            self.memory.write(
                self.descriptors + 16 * number, struct.pack("<QIHH", address, length, flags | more, following)
            )
        self._put16(self.driver + 4 + 2 * (self._added % self.size), numbers[0])
        self._added += 1
        self._requests[numbers[0]] = numbers
        return numbers[0]

    def publish(self) -> bool:
        """Make what was added available. True: the device wants the doorbell rung."""
        old, self._shown = self._shown, self._added
        self._put16(self.driver + 2, self._added)
        if not self.event_index:
            return not self._u16(self.device) & 1
        event = self._u16(self.device + 4 + 8 * self.size)
        return (self._added - event - 1) & 0xFFFF < (self._added - old) & 0xFFFF

    def collect(self) -> list[tuple[int, int]]:
        """(number, bytes written) of each chain that came back since the last time. Raises BadRing."""
        found = []
        index = self._u16(self.device + 2)
        while self._seen & 0xFFFF != index:
            place = self.device + 4 + 8 * (self._seen % self.size)
            number, written = struct.unpack("<II", self.memory.read(place, 8))
            if number not in self._requests:
                raise BadRing(f"chain {number} came back, which is not with the device")
            self._free += self._requests.pop(number)
            self.free = len(self._free)
            found.append((number, written))
            self._seen += 1
        return found

    def want_interrupt(self, wanted: bool) -> None:
        """Ask for an interrupt at the next chain that comes back, or for none."""
        if self.event_index:
            self._put16(self.driver + 4 + 2 * self.size, self._seen if wanted else self._seen - 1)
        else:
            self._put16(self.driver, 0 if wanted else 1)


class PackedRing(Ring):
    """As SplitRing."""

    def __init__(self, memory: GuestMemory, base: int, size: int, *, event_index: bool = False) -> None:
        super().__init__(memory, base, size, event_index=event_index)
        self.driver = base + 16 * size
        self.device = self.driver + 4
        self.end = self.device + 4
        memory.write(base, bytes(self.end - base))
        self._numbers = list(range(size))
        self._requests: dict[int, int] = {}
        self._next = self._used = 0
        self._wrap = self._used_wrap = True
        self._heads: list[tuple[int, int]] = []
        self._added = 0

    def add(self, parts: Sequence[Part], table: int | None = None) -> int:
        if table is not None:
            data = b"".join(struct.pack("<QIHH", a, length, 0, WRITE if write else 0) for a, length, write in parts)
            self.memory.write(table, data)
            entries = [(table, len(data), INDIRECT)]
        else:
            entries = [(address, length, WRITE if write else 0) for address, length, write in parts]
        if len(entries) > self.free or not self._numbers:
            raise ValueError("the ring is full")
        number = self._numbers.pop()
        for i, (address, length, flags) in enumerate(entries):
            flags |= NEXT if i + 1 < len(entries) else 0
            flags |= AVAILABLE if self._wrap else USED
            place = self.descriptors + 16 * self._next
            if i == 0:  # shown last, by `publish`
                self._heads.append((place + 14, flags))
                self.memory.write(place, struct.pack("<QIH", address, length, number))
            else:
                self.memory.write(place, struct.pack("<QIHH", address, length, number, flags))
            self._next += 1
            if self._next == self.size:
                self._next, self._wrap = 0, not self._wrap
        self.free -= len(entries)
        self._added += len(entries)
        self._requests[number] = len(entries)
        return number

    def publish(self) -> bool:
        for place, flags in reversed(self._heads):
            self._put16(place, flags)
        self._heads.clear()
        added, self._added = self._added, 0
        event, flags = self._u16(self.device), self._u16(self.device + 2)
        if flags != 2:
            return flags == 0
        offset = (event & 0x7FFF) - (0 if bool(event >> 15) == self._wrap else self.size)
        return (self._next - offset - 1) & 0xFFFF < added

    def collect(self) -> list[tuple[int, int]]:
        found: list[tuple[int, int]] = []
        while True:
            place = self.descriptors + 16 * self._used
            _, written, number, flags = struct.unpack("<QIHH", self.memory.read(place, 16))
            if not bool(flags & AVAILABLE) == bool(flags & USED) == self._used_wrap:
                return found
            if number not in self._requests:
                raise BadRing(f"buffer {number} came back, which is not with the device")
            slots = self._requests.pop(number)
            self._numbers.append(number)
            self.free += slots
            found.append((number, written if flags & WRITE else 0))
            self._used += slots
            if self._used >= self.size:
                self._used, self._used_wrap = self._used - self.size, not self._used_wrap

    def want_interrupt(self, wanted: bool) -> None:
        if wanted and self.event_index:
            self._put16(self.driver, self._used | (0x8000 if self._used_wrap else 0))
            self._put16(self.driver + 2, 2)
        else:
            self._put16(self.driver + 2, 0 if wanted else 1)
