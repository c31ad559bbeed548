"""A plan of what goes where in guest memory: checked piece by piece, written only when all of it is known to fit."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from kvmkit.errors import BadInput
from kvmkit.memory import HOLE, GuestMemory

from .elf import Segment

MIB = 1 << 20
PAGE = 4096


def align_up(value: int, to: int) -> int:
    return (value + to - 1) // to * to


class Layout:
    """Pieces for `memory`, on behalf of the kernel at `path`. Nothing is written before `write`."""

    def __init__(self, memory: GuestMemory, path: Path) -> None:
        self.memory = memory
        self.path = path
        self.pieces: list[tuple[int, memoryview | bytes]] = []

    def require(self, end: int, what: str = "the kernel") -> None:
        """Raise BadInput unless RAM from 0 goes up to guest physical address `end`, which `what` needs."""
        if end <= self.memory.low:
            return
        if end > HOLE:
            raise BadInput(f"{self.path}: {what} needs RAM up to {end:#x}, but a PC has none from {HOLE:#x} to 4 GiB")
        raise BadInput(
            f"{self.path}: {what} needs RAM up to {end:#x}: give the machine at least {align_up(end, MIB) // MIB} MiB "
            f"(it has {self.memory.size / MIB:g})"
        )

    def add(self, address: int, data: memoryview | bytes) -> None:
        """`data` is to be written at `address`. Raises BadInput when there is no RAM for it."""
        self.require(address + len(data))
        self.pieces.append((address, data))

    def add_segments(self, data: memoryview, segments: Sequence[Segment], lowest: int, above: str) -> None:
        """The segments of an ELF file; none may begin below `lowest`, where `above` says what stands there."""
        self.require(max(segment.address + segment.size for segment in segments))
        for segment in segments:
            if segment.address < lowest:
                raise BadInput(f"{self.path}: a segment at {segment.address:#x} would overwrite {above}")
            self.pieces.append((segment.address, data[segment.offset : segment.offset + segment.file_size]))

    def write(self) -> None:
        """Put everything in guest memory, one copy each. What lies between the pieces is left as it is: zeros."""
        for address, data in self.pieces:
            self.memory.write(address, data)
