"""A virtio-net driver of 200 bytes that runs in ring 3 and polls, on bench.kernel's way there: it sends, or receives.

In its file are the frames, too. It keeps `DEPTH` buffers with the device and rings the doorbell when the device asks
for that. One that comes back with another length than it should ends it with status 15.

Source: virtio 1.2, 5.1.6; and virtio_kernel's.
"""

from __future__ import annotations

import struct
from typing import Literal

from kvmkit.bench import virtio_kernel
from kvmkit.bench.virtio_kernel import BUFFERS, WRITE

Way = Literal["send", "receive"]

DEPTH = 128
"""Buffers with the device at once."""
HEADER = 12
MOST_FRAMES = 0x7FFFFFFF
MOST_SIZE = 65535
GUEST, PEER = bytes.fromhex("525400123456"), bytes.fromhex("525400abcdef")

_RUN = """
    eb40                   jmp begin

    410fb6d3               submit: movzx edx, r11b     buffer eax
    66890455 04102100      mov [AVAILABLE + 4 + 2 rdx], ax
    41ffc3                 inc r11d
    41ffc0                 inc r8d
    c3                     ret

    6644891c25 02102100    publish: mov [AVAILABLE + 2], r11w
    f0830c2400             lock or dword [rsp], 0
    f60425 00202100 01     test byte [USED], 1
    7507                   jnz 1f
    c74350 {queue}         mov dword [rbx + QueueNotify], queue
    c3                     1: ret

    ba f4000000            fail: mov edx, DEBUG_EXIT
    b8 07000000            mov eax, 7
    ee                     out dx, al
    ebf3                   jmp fail

    31c0                   begin: xor eax, eax
    e8 b9ffffff            3: call submit
    ffc0                   inc eax
    3d {depth}             cmp eax, depth
    72f2                   jb 3b
    e8 beffffff            call publish
    f390                   4: pause
    0fb70c25 02202100      movzx ecx, word [USED + 2]
    664439c9               cmp cx, r9w
    74f0                   je 4b
    4589dc                 mov r12d, r11d
    410fb6d1               5: movzx edx, r9b
    8b04d5 04202100        mov eax, [USED + 4 + 8 rdx]
    813cd5 08202100 {length}  cmp dword [USED + 8 + 8 rdx], length
    75b3                   jne fail
    41ffc1                 inc r9d
    41ffcd                 dec r13d
    4539d0                 cmp r8d, r10d
    7305                   jae 6f
    e8 70ffffff            call submit
    664439c9               6: cmp cx, r9w
    75d2                   jne 5b
    4539dc                 cmp r12d, r11d
    7405                   je 7f
    e8 73ffffff            call publish
    4585ed                 7: test r13d, r13d
    75b0                   jnz 4b
"""


def build(base: int, way: Way, size: int, frames: int) -> bytes:
    """The kernel: `frames` of `size` bytes, to or from a card with registers at `base`."""
    if not DEPTH <= frames <= MOST_FRAMES or not 14 <= size <= MOST_SIZE:
        raise ValueError(f"{frames} frames of {size} bytes")
    stride = (HEADER + size + 63) & ~63
    flags = WRITE if way == "receive" else 0
    data = {
        virtio_kernel.DESCRIPTORS: b"".join(
            struct.pack("<QIHH", BUFFERS + i * stride, HEADER + size, flags, 0) for i in range(DEPTH)
        ),
    }
    if way == "send":
        data[BUFFERS] = (bytes(HEADER) + frame(size, PEER, GUEST)).ljust(stride, b"\0") * DEPTH
    else:
        data[BUFFERS] = b""
    values = {
        "base": base,
        "total": frames,
        "queue": 1 if way == "send" else 0,
        "depth": DEPTH,
        "length": 0 if way == "send" else HEADER + size,
    }
    return virtio_kernel.build(_RUN, values, data, queue=values["queue"])


def frame(size: int, to: bytes = GUEST, source: bytes = PEER) -> bytes:
    """A frame of `size` bytes, of a protocol for experiments."""
    return (to + source + b"\x88\xb5").ljust(size, b"n")
