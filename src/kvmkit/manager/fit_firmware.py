"""The firmware of a Description as our machine has it: without system management mode, and of this host's files."""

from __future__ import annotations

import os
from typing import NamedTuple

from kvmkit.firmware import BIOS, is_uefi
from kvmkit.manager.description import Description, Firmware

UEFI_NAMES = ("ovmf", "edk2", "uefi", ".fd")
NOT_KEPT = "keeping UEFI's variables: what the guest writes to them goes with the VM there; name a file by nvram"
"""Of a VM that is described to others."""


class Fitted(NamedTuple):
    """Fields of a VmSpec; in words, what of the firmware is not to be had, and what is another than was asked for."""

    firmware: str = ""
    nvram: str = ""
    nvram_template: str = ""
    secure_boot: bool = False
    lacks: tuple[str, ...] = ()
    differs: tuple[str, ...] = ()


def fitted_firmware(description: Description) -> Fitted:
    asked = description.firmware
    if wants_uefi(asked):
        from kvmkit.manager.fit_uefi import fitted

        return fitted(asked)
    return Fitted("" if description.kernel else asked.bios or BIOS)


def wants_uefi(asked: Firmware) -> bool:
    if asked.efi or asked.code or asked.variables or asked.template or is_uefi(asked.bios):
        return True
    return not os.path.exists(asked.bios) and any(word in asked.bios.lower() for word in UEFI_NAMES)
