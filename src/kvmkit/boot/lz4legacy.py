"""The LZ4 legacy frame, in which Linux wraps an LZ4 kernel: a magic number, then blocks that each give up to 8 MiB.

Source: doc/lz4_Frame_format.md of LZ4, "Legacy frame".
"""

from __future__ import annotations

MAGIC = b"\x02\x21\x4c\x18"
BLOCK = 8 << 20


def decompress(data: memoryview, limit: int) -> bytes:
    """What the frame holds, at most `limit` bytes. Raises ValueError when the data is damaged.

    The format has no end mark: the frame ends with its data, with no room for another block.
    """
    from lz4.block import LZ4BlockError  # type: ignore[import-untyped] # lz4 has no type information
    from lz4.block import decompress as unpack_block

    if data[:4] != MAGIC:
        raise ValueError("not an LZ4 legacy frame")
    blocks: list[bytes] = []
    total = 0
    at = 4
    while at + 4 <= len(data):
        if blocks and len(blocks[-1]) < BLOCK:
            # Only the last block is short. This also bounds the work: each block costs us 8 MiB of address space.
            raise ValueError("LZ4 data goes on behind its last block")
        size = int.from_bytes(data[at : at + 4], "little")
        at += 4
        if size == 0 or size > len(data) - at:
            raise ValueError("LZ4 data is truncated")
        try:
            block = unpack_block(data[at : at + size], uncompressed_size=BLOCK)
        except (LZ4BlockError, MemoryError) as error:
            raise ValueError("LZ4 data is damaged") from error
        total += len(block)
        if total > limit:
            raise ValueError("LZ4 data is longer than it may be")
        blocks.append(block)
        at += size
    return b"".join(blocks)
