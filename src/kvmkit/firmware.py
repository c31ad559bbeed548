"""Firmware that hosts have: what it is called here, and where distributions put it."""

from __future__ import annotations

import os
from typing import NamedTuple

BIOS, UEFI = "bios", "uefi"
NAMES = (BIOS, UEFI)
"""The host's own; any other name is a path."""

LARGEST_BIOS = 256 << 10


def is_uefi(name: str) -> bool:
    """Whether `name`, one of NAMES or a path, is UEFI: such an image is larger than any BIOS."""
    if name in ("", *NAMES):
        return name == UEFI
    try:
        return os.path.getsize(name) > LARGEST_BIOS
    except OSError:
        return False


SEABIOS = (
    "/usr/share/seabios/bios-256k.bin",
    "/usr/share/qemu/bios-256k.bin",
    "/usr/share/kvm/bios-256k.bin",
    "/usr/local/share/qemu/bios-256k.bin",
)
"""Where distributions put SeaBIOS: Debian and Fedora, Arch and openSUSE, builds of QEMU."""


class Ovmf(NamedTuple):
    """UEFI for virtual machines: its code, a template of variables, and one with keys where the code, without system
    management mode, has Secure Boot."""

    code: str
    variables: str
    enrolled: str = ""


OVMF = (
    Ovmf("/usr/share/OVMF/OVMF_CODE_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.fd", "/usr/share/OVMF/OVMF_VARS_4M.ms.fd"),
    Ovmf("/usr/share/edk2/x64/OVMF_CODE.4m.fd", "/usr/share/edk2/x64/OVMF_VARS.4m.fd"),
    Ovmf("/usr/share/edk2/ovmf/OVMF_CODE.fd", "/usr/share/edk2/ovmf/OVMF_VARS.fd"),
    Ovmf("/usr/share/qemu/ovmf-x86_64-4m-code.bin", "/usr/share/qemu/ovmf-x86_64-4m-vars.bin"),
)
"""Where distributions put it: Debian, Arch, Fedora, openSUSE."""
