"""What the polling virtio drivers of blk_kernel and net_kernel share: where things are, and how they begin.

What can be known before is in the kernel's file: the registers to write, descriptors, the first available ring. A ring
has neither event indices nor interrupts.

Sources: virtio 1.2, 2.7, 3.1.1, 4.2.2 and 4.2.3.
"""

from __future__ import annotations

import struct
from collections.abc import Mapping

from kvmkit.bench import kernel

REGISTERS = 0x200000
DESCRIPTORS, AVAILABLE, USED = 0x210000, 0x211000, 0x212000
BUFFERS = 0x400000
QUEUE = 256
NEXT, WRITE = 1, 2
VERSION_1 = 1

_SET_UP = """
    bb {base}              mov ebx, base
    be 00002000            mov esi, REGISTERS
    8b06                   1: mov eax, [rsi]
    83f8ff                 cmp eax, -1
    740c                   je 2f
    8b5604                 mov edx, [rsi + 4]
    891403                 mov [rbx + rax], edx
    4883c608               add rsi, 8
    ebed                   jmp 1b
    4531c0                 2: xor r8d, r8d             begun
    4531c9                 xor r9d, r9d                the used index seen
    4531db                 xor r11d, r11d              the available index
    41ba {total}           mov r10d, total
    4589d5                 mov r13d, r10d              not done
"""


def build(
    listing: str, values: Mapping[str, int], data: Mapping[int, bytes], *, features: int = 0, queue: int = 0
) -> bytes:
    """The kernel that sets queue `queue` up and runs `listing`, which finds r8 to r13 as _SET_UP leaves them.

    `values` fill the braces; base (of the registers) and total are among them. `features`: bits 0 to 31.
    """
    pairs = b"".join(struct.pack("<II", *pair) for pair in _registers(features, queue))
    first = {REGISTERS: pairs + b"\xff" * 8, AVAILABLE: struct.pack("<H", 1)}  # no interrupts
    program = _code(_SET_UP, values) + kernel.say(kernel.START) + _code(listing, values) + kernel.say(kernel.END)
    return kernel.image(program + kernel.tail(), {**first, **data})


def _code(listing: str, values: Mapping[str, int]) -> bytes:
    """The bytes of a listing: two spaces and more part them from the instruction in words."""
    filled = listing.format(**{name: struct.pack("<I", value).hex() for name, value in values.items()})
    return b"".join(bytes.fromhex(line.strip().split("  ", 1)[0]) for line in filled.splitlines() if line.strip())


def _registers(features: int, queue: int) -> list[tuple[int, int]]:
    """(offset, value) of each register to write."""
    set_up = [(0x70, 0), (0x70, 1), (0x70, 3), (0x24, 0), (0x20, features), (0x24, 1), (0x20, VERSION_1), (0x70, 11)]
    set_up += [(0x30, queue), (0x38, QUEUE)]
    for offset, address in ((0x80, DESCRIPTORS), (0x90, AVAILABLE), (0xA0, USED)):
        set_up += [(offset, address), (offset + 4, 0)]
    return [*set_up, (0x44, 1), (0x70, 15)]
