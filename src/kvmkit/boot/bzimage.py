"""The Linux kernel image for x86 (bzImage): its setup header, and where its parts lie in the file.

Source: Documentation/arch/x86/boot.rst of Linux, "The Real-Mode Kernel Header".
"""

from __future__ import annotations

import struct
from pathlib import Path
from typing import NamedTuple

from kvmkit.errors import BadInput

SECTOR = 512
HEADER = 0x1F1
"""Where the setup header begins, in the file and in the zero page."""
MINIMUM_PROTOCOL = 0x020C
"""2.12, of Linux 3.8: the first that says whether there is a 64-bit entry point."""
XLF_KERNEL_64 = 1
ENTRY_64 = 0x200
"""The 64-bit entry point, from the start of the protected-mode part."""


class BzImage(NamedTuple):
    """A validated image. `kernel` and `payload` are (offset, length) in the file, of the protected-mode part and of
    the compressed vmlinux in it (length 0: there is none); `header` is what belongs at 0x1f1 of the zero page."""

    header: bytes
    protocol: int
    kernel: tuple[int, int]
    payload: tuple[int, int]
    cmdline_size: int
    initrd_addr_max: int
    relocatable: bool
    alignment: int
    pref_address: int
    init_size: int


def is_bzimage(head: bytes) -> bool:
    """Whether a file that starts with `head` has the setup header's two signatures."""
    return head[0x1FE:0x200] == b"\x55\xaa" and head[0x202:0x206] == b"HdrS"


def parse(path: Path, head: bytes, size: int) -> BzImage:
    """The header of a file of `size` bytes that starts with `head`. Raises BadInput: too old, 32-bit, truncated."""
    if len(head) < 0x290:
        raise BadInput(f"{path}: the bzImage is truncated: it has only {size} bytes")
    (protocol,) = struct.unpack_from("<H", head, 0x206)
    if protocol < MINIMUM_PROTOCOL:
        raise BadInput(
            f"{path}: the kernel speaks boot protocol {protocol >> 8}.{protocol & 255:02}; 2.12 (Linux 3.8) is needed"
        )
    (xloadflags,) = struct.unpack_from("<H", head, 0x236)
    if not xloadflags & XLF_KERNEL_64:
        raise BadInput(f"{path}: a 32-bit kernel, or one without a 64-bit entry point: give an x86-64 kernel")

    # Zero means four, for kernels older than the field.
    setup = ((head[0x1F1] or 4) + 1) * SECTOR
    (paragraphs,) = struct.unpack_from("<I", head, 0x1F4)
    length = paragraphs * 16
    if length <= ENTRY_64:
        raise BadInput(f"{path}: the bzImage is damaged: its kernel part has {length} bytes")
    if setup + length > size:
        raise BadInput(f"{path}: the bzImage is truncated: it has {size} of {setup + length} bytes")
    payload_offset, payload_length = struct.unpack_from("<II", head, 0x248)
    if payload_offset + payload_length > length:
        raise BadInput(f"{path}: the bzImage is damaged: its payload ends outside of it")

    end = min(0x202 + head[0x201], 0x290)
    (initrd_addr_max, alignment) = struct.unpack_from("<II", head, 0x22C)
    (cmdline_size,) = struct.unpack_from("<I", head, 0x238)
    pref_address, init_size = struct.unpack_from("<QI", head, 0x258)
    return BzImage(
        header=head[HEADER:end],
        protocol=protocol,
        kernel=(setup, length),
        payload=(setup + payload_offset, payload_length),
        cmdline_size=cmdline_size or 255,
        initrd_addr_max=initrd_addr_max or 0x37FFFFFF,
        relocatable=bool(head[0x234]),
        alignment=alignment,
        pref_address=pref_address,
        init_size=init_size,
    )
