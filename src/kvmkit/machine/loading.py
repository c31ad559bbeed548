"""The boot phase: put the kernel in memory, and the first vCPU at its entry or the firmware's."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmkit.machine.board import Board


def load(board: Board) -> None:
    """Load the kernel, if firmware does not, and set vCPU 0. BadInput: a file can't be used, too little memory."""
    from kvmkit import boot

    spec = board.spec
    if spec.firmware:
        from kvmkit.boot.firmware import FirmwareState

        FirmwareState().apply(board.vcpus[0])
        return
    state = boot.load(
        board.memory,
        Path(spec.kernel),
        initrd=[Path(path) for path in spec.initrd],
        cmdline=spec.append,
        rsdp=board.rsdp,
    )
    state.apply(board.vcpus[0])
