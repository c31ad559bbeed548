"""A virtio-blk driver of 240 bytes that runs in ring 3 and polls, on bench.kernel's way there.

In its file are the requests' headers and a list of sectors, too. It keeps `depth` requests with the device and rings
the doorbell when the device asks for that. A request that fails ends it with status 15.

Source: virtio 1.2, 5.2.6; and virtio_kernel's.
"""

from __future__ import annotations

import random
import struct
from typing import Literal

from kvmkit.bench import virtio_kernel
from kvmkit.bench.virtio_kernel import BUFFERS, NEXT, WRITE

Way = Literal["read", "write"]

HEADERS = 0x220000
"""Request i uses descriptors 3 i to 3 i + 2; its header is at HEADERS + 48 i and its status at STATUS + 3 i."""
STATUS = 0x221000
SECTORS = 0x300000
SECTOR_COUNT = 0x4000
MOST_DEPTH = 32
MOST_REQUESTS = 0x7FFFFFFF
FLUSH = 1 << 9
SECTOR = 512

_RUN = """
    eb5d                   jmp begin

    4489c2                 submit: mov edx, r8d        request with descriptor eax
    81e2 ff3f0000          and edx, SECTOR_COUNT - 1
    488b14d5 00003000      mov rdx, [SECTORS + 8 rdx]
    89c6                   mov esi, eax
    c1e604                 shl esi, 4
    488996 08002200        mov [HEADERS + 8 + rsi], rdx
    410fb6d3               movzx edx, r11b
    66890455 04102100      mov [AVAILABLE + 4 + 2 rdx], ax
    41ffc3                 inc r11d
    41ffc0                 inc r8d
    c3                     ret

    6644891c25 02102100    publish: mov [AVAILABLE + 2], r11w
    f0830c2400             lock or dword [rsp], 0
    f60425 00202100 01     test byte [USED], 1
    7507                   jnz 1f
    c7435000000000         mov dword [rbx + QueueNotify], 0
    c3                     1: ret

    ba f4000000            fail: mov edx, DEBUG_EXIT
    b8 07000000            mov eax, 7
    ee                     out dx, al
    ebf3                   jmp fail

    90                     begin: nop
    31c0                   xor eax, eax
    e8 9bffffff            3: call submit
    83c003                 add eax, 3
    3d {heads}             cmp eax, 3 * depth
    72f1                   jb 3b
    e8 bcffffff            call publish
    f390                   4: pause
    0fb70c25 02202100      movzx ecx, word [USED + 2]
    664439c9               cmp cx, r9w
    74f0                   je 4b
    4589dc                 mov r12d, r11d
    410fb6d1               5: movzx edx, r9b
    8b04d5 04202100        mov eax, [USED + 4 + 8 rdx]
    80b8 00102200 00       cmp byte [STATUS + rax], 0
    75b5                   jne fail
    41ffc1                 inc r9d
    41ffcd                 dec r13d
    4539d0                 cmp r8d, r10d
    7305                   jae 6f
    e8 55ffffff            call submit
    664439c9               6: cmp cx, r9w
    75d6                   jne 5b
    4539dc                 cmp r12d, r11d
    7405                   je 7f
    e8 75ffffff            call publish
    4585ed                 7: test r13d, r13d
    75b4                   jnz 4b
"""


def build(
    base: int, way: Way, size: int, depth: int, requests: int, disk: int, *, sequential: bool = False, seed: int = 1
) -> bytes:
    """The kernel: `requests` of `size` bytes, `depth` at a time, to a disk of `disk` bytes with registers at `base`.

    Places are random multiples of `size`, or follow each other.
    """
    if not 1 <= depth <= MOST_DEPTH or not depth <= requests <= MOST_REQUESTS or size % SECTOR or disk < size:
        raise ValueError(f"{requests} requests of {size} bytes, {depth} at once, to {disk} bytes")
    places = disk // size
    generator = random.Random(seed)  # the same for each side
    order = [i % places if sequential else generator.randrange(places) for i in range(SECTOR_COUNT)]
    data = {
        virtio_kernel.DESCRIPTORS: b"".join(_request(i, way, size) for i in range(depth)),
        HEADERS: b"".join(struct.pack("<IIQ32x", 1 if way == "write" else 0, 0, 0) for _ in range(depth)),
        STATUS: b"\xff" * 3 * depth,
        SECTORS: struct.pack(f"<{SECTOR_COUNT}Q", *(place * (size // SECTOR) for place in order)),
    }
    values = {"base": base, "total": requests, "heads": 3 * depth}
    return virtio_kernel.build(_RUN, values, data, features=FLUSH)


def _request(i: int, way: Way, size: int) -> bytes:
    device_writes = WRITE if way == "read" else 0
    return (
        struct.pack("<QIHH", HEADERS + 48 * i, 16, NEXT, 3 * i + 1)
        + struct.pack("<QIHH", BUFFERS + i * size, size, NEXT | device_writes, 3 * i + 2)
        + struct.pack("<QIHH", STATUS + 3 * i, 1, WRITE, 0)
    )
