"""A fuzzer's bytes as numbers, choices and strings; zeros when they are used up."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")

EDGES = (0, 1, 2, 0x7F, 0xFF, 0xFFFF, 0x7FFFFFFF, 0xFFFFFFFF, 0x7FFFFFFFFFFFFFFF, 0xFFFFFFFFFFFFFFFF)


class Reader:
    def __init__(self, data: bytes) -> None:
        self._data = data
        self._at = 0

    @property
    def more(self) -> bool:
        return self._at < len(self._data)

    def bytes(self, count: int) -> bytes:
        part = self._data[self._at : self._at + count]
        self._at += count
        return part.ljust(count, b"\0")

    def rest(self) -> bytes:
        part, self._at = self._data[self._at :], len(self._data)
        return part

    def number(self, size: int) -> int:
        return int.from_bytes(self.bytes(size), "little")

    def below(self, limit: int) -> int:
        return self.number(1 if limit <= 256 else 2) % limit

    def choose(self, choices: Sequence[T]) -> T:
        return choices[self.below(len(choices))]

    def flag(self) -> bool:
        return bool(self.number(1) & 1)

    def value(self) -> int:
        """A number with a liking for edges."""
        kind = self.number(1)
        if kind < 2 * len(EDGES):
            return EDGES[kind // 2] - (kind & 1) & 0xFFFFFFFFFFFFFFFF
        return self.number(1 << (kind & 3))
