"""SeaBIOS, which starts a disk's boot loader as any PC's BIOS does. Source: its docs, "Memory model", "Runtime config".

It runs from RAM up to 1 MiB, where it may write to itself, and renews itself from the ROM at a reset.
"""

from __future__ import annotations

import os
from pathlib import Path

from kvmkit.errors import BadInput, HostError
from kvmkit.firmware import BIOS, LARGEST_BIOS, SEABIOS
from kvmkit.memory import GuestMemory
from kvmkit.packages import how

from .firmware import MIB, RESET_VECTOR, image

SMALLEST = 64 << 10
FAR_JUMP, NEAR_JUMP = 0xEA, 0xE9
LEAST_MEMORY = 4 * MIB
CONSOLE_PORT = 0x3F8
NEVER = 0xFFFFFFFF

FILES = {
    "etc/sercon-port": CONSOLE_PORT.to_bytes(2, "little"),  # there is no screen: its text goes to the serial port
    "etc/boot-fail-wait": NEVER.to_bytes(4, "little"),  # before it tries again; it has said why by then
}
"""What it reads by fw_cfg and no other firmware does."""


def find() -> str:
    """The path of SeaBIOS. Raises HostError, with what to install, when there is none."""
    for path in SEABIOS:
        if os.path.exists(path):
            return path
    raise HostError(f"no SeaBIOS here, to start from a disk with: {how('seabios')}, or name an image")


def read(name: str) -> bytes:
    """The image `name`, a path or "bios". Raises BadInput, in a line, for what is none."""
    path = Path(find() if name == BIOS else name)
    data = image(path, "BIOS", SMALLEST, LARGEST_BIOS)
    if len(data) % SMALLEST or data[-RESET_VECTOR] not in (FAR_JUMP, NEAR_JUMP):
        raise BadInput(f"{path}: no BIOS image: it does not end in a reset vector")
    return data


def load(memory: GuestMemory, data: bytes) -> None:
    """Put the image below 1 MiB. Raises BadInput when there is too little RAM."""
    if memory.low < LEAST_MEMORY:
        raise BadInput(f"a start by firmware needs {LEAST_MEMORY // MIB} MiB of RAM (it has {memory.size / MIB:g})")
    memory.write(MIB - len(data), data)
