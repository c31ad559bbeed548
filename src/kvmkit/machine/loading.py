"""The boot phase: put the kernel or the firmware in memory and the first vCPU at its entry."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmkit.machine.board import Board


def load(board: Board) -> None:
    """Load the kernel or firmware, and set vCPU 0. Raises BadInput when a file can't be used or memory is too small."""
    from kvmkit import boot

    spec = board.spec
    if spec.firmware:
        from kvmkit.boot import firmware

        firmware.load(board.memory, board.firmware).apply(board.vcpus[0])
        return
    state = boot.load(
        board.memory,
        Path(spec.kernel),
        initrd=[Path(path) for path in spec.initrd],
        cmdline=spec.append,
        rsdp=board.rsdp,
    )
    state.apply(board.vcpus[0])
