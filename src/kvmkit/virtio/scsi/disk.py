"""A disk: direct access to blocks. Source: SBC-3 (T10/BSR INCITS 514)."""

from __future__ import annotations

import errno
from collections.abc import Callable
from dataclasses import dataclass

from . import sense
from .sense import CheckCondition, invalid_field, invalid_parameter
from .unit import LogicalUnit, Medium, Op

MOST_TRANSFER = 1 << 19
"""Bytes that one READ, WRITE or VERIFY can ask for: what one request may have us hold."""
MOST_SAME = 32 << 20
"""Bytes of one WRITE SAME whose block is not all zeros: it is written out, and the guest waits."""
MOST_UNMAP_DESCRIPTORS = 256
SERVICE_READ_CAPACITY = 0x10
CACHING, CONTROL, ERROR_RECOVERY = 0x08, 0x0A, 0x01
WRITE_CACHE = 4
WRITE_PROTECTED, FUA_OFFERED = 0x80, 0x10
FUA = 8


@dataclass(frozen=True, slots=True)
class Extent:
    """Blocks that a CDB names, and the flags beside them."""

    first: int
    count: int
    flags: int


def extent(cdb: bytes) -> Extent:
    """The address and length of a command of 6, 10, 12 or 16 bytes."""
    group = cdb[0] >> 5
    if group == 0:
        return Extent(int.from_bytes(cdb[1:4], "big") & 0x1FFFFF, cdb[4] or 256, 0)
    if group == 4:
        return Extent(int.from_bytes(cdb[2:10], "big"), int.from_bytes(cdb[10:14], "big"), cdb[1])
    first = int.from_bytes(cdb[2:6], "big")
    count = int.from_bytes(cdb[6:10] if group == 5 else cdb[7:9], "big")
    return Extent(first, count, cdb[1])


class Disk(LogicalUnit):
    """A disk on `medium`, whose size may change. `rotational`: what the guest's I/O scheduler is told."""

    def __init__(self, medium: Medium, *, serial: str = "", block_bytes: int = 512, physical_bytes: int = 4096) -> None:
        super().__init__(medium, serial=serial, block_bytes=block_bytes)
        self.physical_bytes = max(physical_bytes, block_bytes)
        self.write_cache = True
        self.handlers |= dict.fromkeys((Op.READ_6, Op.READ_10, Op.READ_12, Op.READ_16), self._read)
        self.handlers |= dict.fromkeys((Op.WRITE_6, Op.WRITE_10, Op.WRITE_12, Op.WRITE_16), self._write)
        self.handlers |= dict.fromkeys((Op.VERIFY_10, Op.VERIFY_12, Op.VERIFY_16), self._verify)
        self.handlers |= dict.fromkeys((Op.SYNCHRONIZE_CACHE_10, Op.SYNCHRONIZE_CACHE_16), self._synchronize)
        self.handlers |= dict.fromkeys((Op.WRITE_SAME_10, Op.WRITE_SAME_16), self._write_same)
        self.handlers |= {
            Op.READ_CAPACITY_10: self._read_capacity_10,
            Op.SERVICE_ACTION_IN_16: self._service_action_in,
            Op.UNMAP: self._unmap,
        }

    def resized(self) -> None:
        """The medium has another size now: the guest is to ask."""
        self.attention(sense.CAPACITY_CHANGED)

    # What it is.

    def more_vital_pages(self) -> dict[int, bytes]:
        most = MOST_TRANSFER // self.block_bytes
        limits = bytearray(60)
        limits[0] = 1  # WSNZ: a WRITE SAME of 0 blocks is refused
        limits[2:4] = (self.physical_bytes // self.block_bytes).to_bytes(2, "big")
        limits[4:8] = most.to_bytes(4, "big")
        limits[8:12] = most.to_bytes(4, "big")
        limits[16:20] = (0xFFFFFFFF).to_bytes(4, "big")  # blocks of one UNMAP
        limits[20:24] = MOST_UNMAP_DESCRIPTORS.to_bytes(4, "big")
        limits[24:28] = (self.physical_bytes // self.block_bytes).to_bytes(4, "big")
        limits[32:40] = (MOST_SAME // self.block_bytes).to_bytes(8, "big")
        characteristics = bytearray(60)
        characteristics[0:2] = (1).to_bytes(2, "big")  # it does not turn
        # Blocks can be unmapped, by UNMAP and WRITE SAME; they read as zeros then; space is taken as it is needed.
        provisioning = bytes([0, 0xE4, 2, 0])
        return {0xB0: bytes(limits), 0xB1: bytes(characteristics), 0xB2: provisioning}

    def mode_flags(self) -> int:
        return FUA_OFFERED | (WRITE_PROTECTED if self.medium is not None and self.medium.readonly else 0)

    def _modes(self, write_cache: bool) -> dict[int, bytes]:
        caching = bytearray(20)
        caching[0:3] = [CACHING, 18, WRITE_CACHE if write_cache else 0]
        control = bytearray(12)
        control[0:4] = [CONTROL, 10, 0x02, 0x10]  # fixed sense data; commands may be put in another order
        return {
            ERROR_RECOVERY: bytes([ERROR_RECOVERY, 10, *bytes(10)]),
            CACHING: bytes(caching),
            CONTROL: bytes(control),
        }

    def mode_pages(self) -> dict[int, bytes]:
        return self._modes(self.write_cache)

    def default_mode_pages(self) -> dict[int, bytes]:
        return self._modes(True)

    def changeable(self, page: int, content: bytes) -> bytes:
        mask = bytearray(len(content) - 2)
        if page == CACHING:
            mask[0] = WRITE_CACHE
        return bytes(mask)

    def set_mode(self, page: int, content: bytes) -> None:
        if page != CACHING:
            return
        cached = bool(content[2] & WRITE_CACHE)
        if self.write_cache and not cached and self.medium is not None:
            self.flush(self.medium)
        self.write_cache = cached

    def default_modes(self) -> None:
        self.write_cache = True

    def _read_capacity_10(self, cdb: bytes, data: bytes) -> bytes:
        self.ready()
        return min(max(self.blocks - 1, 0), 0xFFFFFFFF).to_bytes(4, "big") + self.block_bytes.to_bytes(4, "big")

    def _service_action_in(self, cdb: bytes, data: bytes) -> bytes:
        if cdb[1] & 0x1F != SERVICE_READ_CAPACITY:
            raise CheckCondition(invalid_field(1))
        self.ready()
        answer = bytearray(32)
        answer[0:8] = max(self.blocks - 1, 0).to_bytes(8, "big")
        answer[8:12] = self.block_bytes.to_bytes(4, "big")
        answer[13] = (self.physical_bytes // self.block_bytes).bit_length() - 1
        answer[14] = 0xC0  # unmapped blocks are kept track of, and read as zeros
        return bytes(answer[: int.from_bytes(cdb[10:14], "big")])

    # Blocks.

    def locate(self, cdb: bytes) -> tuple[Medium, int, int]:
        """(medium, offset, bytes) of what a CDB names."""
        medium = self.ready()
        named = extent(cdb)
        first, count, flags = named.first, named.count, named.flags
        if flags & 0xE0:  # protection information
            raise CheckCondition(invalid_field(1))
        self._check_range(first, count)
        return medium, first * self.block_bytes, count * self.block_bytes

    def _check_range(self, first: int, count: int) -> None:
        if first + count > self.blocks:
            raise CheckCondition(sense.OUT_OF_RANGE._replace(information=max(first, self.blocks)))

    @staticmethod
    def _try(failed: sense.Sense, action: Callable[[], object]) -> None:
        try:
            action()
        except OSError as error:
            raise CheckCondition(sense.NO_SPACE if error.errno == errno.ENOSPC else failed) from error

    def _written(self, medium: Medium, flags: int) -> None:
        """What was written is to be safe, if it was to be."""
        if flags & FUA or not self.write_cache:
            self.flush(medium)

    def _writable(self, medium: Medium) -> None:
        if medium.readonly:
            raise CheckCondition(sense.WRITE_PROTECTED)

    def transfer(self, cdb: bytes) -> tuple[Medium, int, int]:
        """As `locate`, for a command that moves that much data."""
        medium, offset, length = self.locate(cdb)
        if length > MOST_TRANSFER:
            raise CheckCondition(invalid_field({0: 4, 4: 10, 5: 6}.get(cdb[0] >> 5, 7)))
        return medium, offset, length

    def _read(self, cdb: bytes, data: bytes) -> bytes:
        medium, offset, length = self.transfer(cdb)
        if not length:
            return b""
        try:
            return medium.read(offset, length)
        except OSError as error:
            raise CheckCondition(sense.READ_ERROR._replace(information=offset // self.block_bytes)) from error

    def _write(self, cdb: bytes, data: bytes) -> bytes:
        medium, offset, length = self.transfer(cdb)
        self._writable(medium)
        if len(data) < length:
            raise CheckCondition(sense.PARAMETER_LENGTH)
        if length:
            self._try(sense.WRITE_ERROR, lambda: medium.write(offset, data[:length]))
        self._written(medium, extent(cdb).flags)
        return b""

    def _verify(self, cdb: bytes, data: bytes) -> bytes:
        compare = cdb[1] >> 1 & 3
        medium, offset, length = self.locate(cdb)
        if compare not in (0, 1):
            raise CheckCondition(invalid_field(1))
        if not compare:
            return b""
        if length > MOST_TRANSFER:
            raise CheckCondition(invalid_field(7 if cdb[0] == Op.VERIFY_10 else 10))
        if len(data) < length:
            raise CheckCondition(sense.PARAMETER_LENGTH)
        if self._read_exactly(medium, offset, length) != data[:length]:
            raise CheckCondition(sense.MISCOMPARE)
        return b""

    def _read_exactly(self, medium: Medium, offset: int, length: int) -> bytes:
        try:
            return medium.read(offset, length) if length else b""
        except OSError as error:
            raise CheckCondition(sense.READ_ERROR) from error

    def _synchronize(self, cdb: bytes, data: bytes) -> bytes:
        medium = self.ready()
        named = extent(cdb)
        self._check_range(named.first, named.count)
        self.flush(medium)
        return b""

    def _write_same(self, cdb: bytes, data: bytes) -> bytes:
        medium, offset, length = self.locate(cdb)
        self._writable(medium)
        unmap, no_data = bool(cdb[1] & 8), cdb[0] == Op.WRITE_SAME_16 and bool(cdb[1] & 1)
        if cdb[1] & 0x16:  # anchors, and the two obsolete bits
            raise CheckCondition(invalid_field(1))
        if not length:
            raise CheckCondition(invalid_field(10 if cdb[0] == Op.WRITE_SAME_16 else 7))
        block = bytes(self.block_bytes) if no_data else data[: self.block_bytes]
        if len(block) < self.block_bytes:
            raise CheckCondition(sense.PARAMETER_LENGTH)
        if not any(block):
            clear = medium.discard if unmap else medium.zero
            self._try(sense.WRITE_ERROR, lambda: clear(offset, length))
        else:
            if length > MOST_SAME:
                raise CheckCondition(invalid_field(10 if cdb[0] == Op.WRITE_SAME_16 else 7))
            piece = block * (min(length, MOST_TRANSFER) // self.block_bytes)
            for at in range(0, length, len(piece)):
                part = piece[: length - at]
                self._try(sense.WRITE_ERROR, lambda at=at, part=part: medium.write(offset + at, part))  # type: ignore[misc]  # a default binds the loop's value
        self._written(medium, 0)
        return b""

    def _unmap(self, cdb: bytes, data: bytes) -> bytes:
        medium = self.ready()
        length = int.from_bytes(cdb[7:9], "big")
        if cdb[1] & 1:  # anchor
            raise CheckCondition(invalid_field(1))
        if not length:
            return b""
        data = data[:length]
        if length < 8 or len(data) < length:
            raise CheckCondition(sense.PARAMETER_LENGTH)
        self._writable(medium)
        size = int.from_bytes(data[2:4], "big")
        if size // 16 > MOST_UNMAP_DESCRIPTORS:
            raise CheckCondition(invalid_parameter(2))
        extents = []
        for at in range(8, min(8 + size, len(data)) - 15, 16):
            first, count = int.from_bytes(data[at : at + 8], "big"), int.from_bytes(data[at + 8 : at + 12], "big")
            self._check_range(first, count)
            extents.append((first * self.block_bytes, count * self.block_bytes))
        for offset, count in extents:
            if count:
                self._try(sense.WRITE_ERROR, lambda offset=offset, count=count: medium.discard(offset, count))  # type: ignore[misc]  # as above
        return b""
