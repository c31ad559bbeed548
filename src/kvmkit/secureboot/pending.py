"""The fault-tolerant writer of edk2: whether a firmware was stopped while it replaced its whole variable store.

It first writes the new store to a spare area and notes that, then erases the old one and copies. If its machine ends
meanwhile, the next start copies again: what somebody else wrote to the store in between would be lost.

    working block, after the store     signature, checksum, size of its queue; 32 bytes
      write header, 40 bytes           allocated? complete? how many records, how much private data in each
        records, 40 bytes and more     spare complete? destination complete?

Flash is erased to ones, so that a flag is set by its bit being 0. Source: edk2's
MdeModulePkg/Include/Guid/FaultTolerantWrite.h and MdeModulePkg/Universal/FaultTolerantWriteDxe.
"""

from __future__ import annotations

import struct
from uuid import UUID

_SIGNATURE = UUID("9e58292b-7c68-497d-a0ce-6500fd9f1b95").bytes_le
_BLOCK = struct.Struct("<16s8xQ")
_HEADER = struct.Struct("<B23xQQ")
_RECORD_SIZE = 40
_SECTOR = 4096

_ALLOCATED, _COMPLETE = 1 << 0, 1 << 2
_SPARE_COMPLETE, _DESTINATION_COMPLETE = 1 << 1, 1 << 2


def is_pending(data: bytes, start: int, end: int) -> bool:
    """Whether the writer, whose area is from `start` to `end` of an image, has a copy to make at its next start."""
    for block in range(start + -start % _SECTOR, end - _BLOCK.size, _SECTOR):
        signature, size = _BLOCK.unpack_from(data, block)
        if signature == _SIGNATURE:
            return _queue(data, block + _BLOCK.size, min(end, block + _BLOCK.size + size))
    return False


def _queue(data: bytes, at: int, end: int) -> bool:
    while at + _HEADER.size <= end:
        flags, records, private = _HEADER.unpack_from(data, at)
        if flags & _ALLOCATED:
            return False
        step = _RECORD_SIZE + private
        after = at + _HEADER.size + records * step
        if flags & _COMPLETE:
            return any(_is_halfway(data[one]) for one in range(at + _HEADER.size, min(after, end), step))
        at = after
    return False


def _is_halfway(flags: int) -> bool:
    return not flags & _SPARE_COMPLETE and bool(flags & _DESTINATION_COMPLETE)
