"""UEFI as it is asked for, of the files that this host has: its code, a VM's variables, and what they are made of."""

from __future__ import annotations

import os
from pathlib import Path

import msgspec

from kvmkit.boot import smm, uefi
from kvmkit.errors import BadInput, HostError
from kvmkit.firmware import OVMF, UEFI, Ovmf, is_uefi
from kvmkit.manager.description import Firmware
from kvmkit.manager.fit_firmware import NOT_KEPT, Fitted

LIBVIRTS_OWN = "/var/lib/libvirt/"


def fitted(asked: Firmware) -> Fitted:
    return _Uefi(asked).result


class _Uefi:
    def __init__(self, asked: Firmware) -> None:
        self.asked = asked
        self.lacks: list[str] = []
        self.differs: list[str] = []
        self.secure_boot = asked.secure and asked.keys
        firmware = self._code(asked.code or asked.bios)
        self.code = self._own().code if firmware == UEFI else firmware
        template = self._template()
        nvram = self._variables(template)
        secure_boot = self.secure_boot and firmware == UEFI
        self.result = Fitted(firmware, nvram, template, secure_boot, tuple(self.lacks), tuple(self.differs))

    def _code(self, image: str) -> str:
        asked = self.asked
        there = os.path.exists(image)
        if not image:
            pass
        elif smm.needs_smm(image) or (asked.secure and not there):
            self.secure_boot = asked.keys  # whatever is in variables of their own: it is the code that is to have it
            told = f"{image} needs system management mode, which this machine does not have"
            if code := self._own().code:
                self.differs.append(f"{told}: {code} starts instead, which has Secure Boot without")
            else:
                self.lacks.append(f"the firmware {image}, as that needs system management mode; nearest: {self._how()}")
        elif not there:
            self.lacks.append(f"the firmware {image}; nearest: {self._own().code or self._how()}")
        else:
            alone = asked.code and not (asked.variables or asked.template)
            if alone and is_uefi(image) and _is_whole(os.path.getsize(image)):
                self.differs.append(f"{image} is not written: what UEFI keeps is in a file of the VM's own")
            return image
        return UEFI

    def _own(self) -> Ovmf:
        """The host's OVMF, with the variables that a new VM's are made of. Empty paths: it has none that fits."""
        try:
            found = uefi.find(self.secure_boot)
        except HostError:
            return Ovmf("", "")
        return found._replace(variables=found.enrolled) if self.secure_boot else found

    def _how(self) -> str:
        """Why `_own` is empty, and what helps."""
        try:
            return uefi.find(self.secure_boot).code
        except HostError as error:
            return str(error)

    def _template(self) -> str:
        template = self.asked.template
        if template and (problem := self._unfit(template)):
            own = self._own().variables or self._how()
            self.lacks.append(f"the template of UEFI variables {template} ({problem}); nearest: {own}")
            return ""
        return template

    def _variables(self, template: str) -> str:
        path = self.asked.variables
        if not path:
            return ""
        told = f"the file of UEFI variables {path}"
        template = template or self._own().variables or "the firmware's template"
        if not os.path.lexists(path):
            if not self.asked.made:
                self.lacks.append(f"{told}; nearest: cp {template} {path}")
                return ""
            if os.access(os.path.dirname(path) or ".", os.W_OK) and not path.startswith(LIBVIRTS_OWN):
                return path
            self.lacks.append(f"{told}; nearest: the VM's own, made of {template}")
            return ""
        if problem := self._unfit(path):
            self.lacks.append(f"{told} ({problem}); nearest: a copy of {template}")
        elif not os.access(path, os.W_OK):
            self.lacks.append(f"{told}, which is not yours to write; nearest: a copy of it")
        else:
            return path
        return ""

    def _unfit(self, path: str) -> str:
        """Why these are no variables for the firmware; '': they are."""
        try:
            size = len(uefi.variables_of(Path(path)))
        except BadInput as error:
            return str(error).rpartition(": ")[2]
        whole = os.path.getsize(self.code) if self.code else 0
        if not _is_whole(whole) and not _is_whole(whole + size):
            return f"{size} bytes do not go with {self.code}"
        return ""


def _is_whole(size: int) -> bool:
    """Whether firmware has that size: code and variables together."""
    return size & (size - 1) == 0


def flash_images(asked: Firmware) -> tuple[str, str]:
    """(code, variables), each a path or ''. HostError: UEFI is asked for by that word, and this host has none."""
    own, variables = "", asked.variables or asked.template
    if asked.efi:
        found = uefi.find(secure := asked.secure and asked.keys)
        own, variables = found.code, variables or (found.enrolled if secure else found.variables)
    return asked.code or own, variables


def kept_otherwise(asked: Firmware) -> str:
    """What QEMU does with the variables that kvmkit does otherwise; '': nothing."""
    code, template = flash_images(msgspec.structs.replace(asked, variables=""))
    if asked.made and not os.path.lexists(asked.variables):
        own = next((known.variables for known in OVMF if smm.same(known.code, code)), f"the variables of {code}")
        return f"making {asked.variables}, which QEMU wants there: cp {template or own} {asked.variables}"
    if template and not asked.variables:
        return NOT_KEPT
    return ""
