"""Whether a UEFI image was built for system management mode (SMM_REQUIRE): without that it stops, and says nothing.

Source: Platform Initialization Specification 1.7, volume 3, 3.2.3 (sections); OvmfPkg/OvmfPkgX64.dsc of EDK II, which
has SmmAccessPei in such builds alone. What starts before memory does is at the beginning of the compressed part.
"""

from __future__ import annotations

import lzma
import os
import uuid
from pathlib import Path

from kvmkit.errors import BadInput
from kvmkit.firmware import OVMF

from .files import Source
from .firmware import LARGEST

LZMA = uuid.UUID("ee4e5898-3914-4259-9d6e-dc7bd79403cf").bytes_le
SMM_ACCESS = uuid.UUID("6c0e75b4-b0b9-44d1-8210-3377d7b4e066").bytes_le
EARLY = 2 << 20
MOST_MEMORY = 256 << 20
HEADER = 4
"""Bytes of a section before its GUID; its data begin where the two bytes after the GUID say."""

NAMES = ("secboot", "secure", "smm", ".ms.", "-ms-", "snakeoil")
"""In the names that distributions and QEMU give such builds."""


def needs_smm(path: str) -> bool:
    """By what is in it; of an image that is not here, by its name."""
    if any(same(path, known.code) for known in OVMF):
        return False
    if not os.path.exists(path):
        return any(word in os.path.basename(path).lower() for word in NAMES)
    try:
        with Source(Path(path), "firmware") as source:
            data = bytes(source.map()) if source.size <= LARGEST else b""
    except BadInput:  # said in full when it is loaded
        return False
    at = data.find(LZMA)
    if at < HEADER:
        return False
    begin = at - HEADER + int.from_bytes(data[at + 16 : at + 18], "little")
    try:
        return SMM_ACCESS in lzma.LZMADecompressor(lzma.FORMAT_ALONE, MOST_MEMORY).decompress(data[begin:], EARLY)
    except (lzma.LZMAError, EOFError):
        return False


def same(path: str, other: str) -> bool:
    """Whether both are here and one file."""
    try:
        return os.path.samefile(path, other)
    except OSError:
        return False
