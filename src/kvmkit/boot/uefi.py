"""UEFI: OVMF, which is EDK II for virtual machines, with its variables in a flash chip below its code.

Source: OvmfPkg/README and OvmfPkg/OvmfPkgDefines.fdf.inc of EDK II; its fw_cfg items for a kernel,
OvmfPkg/Include/IndustryStandard/QemuFwCfg.h; Platform Initialization Specification 1.7, volume 3, 3.2.1 (volumes).
"""

from __future__ import annotations

import errno
import fcntl
import mmap
import os
import tempfile
import uuid
from collections.abc import Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import NamedTuple

from kvmkit.errors import BadInput, HostError
from kvmkit.firmware import OVMF, UEFI, Ovmf
from kvmkit.packages import how

from . import smm
from .files import Source
from .firmware import LARGEST, MIB, image

SMALLEST = 1 * MIB
LEAST_MEMORY = 64 * MIB
BELOW_4_GIB = 2 << 30
"""RAM there, when a machine has more: firmware may put configuration space anywhere from 2.75 GiB on."""
VOLUME_SIGNATURE, VOLUME_SIGNATURE_AT = b"_FVH", 40
VARIABLES_GUID = uuid.UUID("fff12b8d-7696-4c8b-a985-2747075b4f50").bytes_le
"""Of the volume that holds variables: EFI_SYSTEM_NV_DATA_FV_GUID, at offset 16."""

KERNEL_SIZE, INITRD_SIZE, KERNEL, INITRD = 0x08, 0x0B, 0x11, 0x12
CMDLINE_SIZE, CMDLINE, SETUP_SIZE, SETUP = 0x14, 0x15, 0x17, 0x18
SECTOR = 512
SETUP_SECTORS_AT, SETUP_SIGNATURE_AT, LOADER_AT, UNKNOWN_LOADER = 0x1F1, 0x202, 0x210, 0xFF
"""In a bzImage's header: Documentation/arch/x86/boot.rst of Linux."""
EFI_PROGRAM = b"MZ"
MOST = (1 << 32) - 1
"""Bytes whose number fw_cfg can tell."""


class Firmware(NamedTuple):
    """`code` is a ROM; `variables`, the template for a machine's own, belong directly below it."""

    code: bytes
    variables: bytes


def find(secure_boot: bool) -> Ovmf:
    """OVMF as this host has it. Raises HostError, with what to install, when there is none."""
    here = [each for each in OVMF if os.path.exists(each.code) and os.path.exists(each.variables)]
    fit = [each for each in here if each.enrolled and os.path.exists(each.enrolled)] if secure_boot else here
    if fit:
        return fit[0]
    if here:
        raise HostError(
            f"--secure-boot: {here[0].code} has no Secure Boot that works without system management mode, which this "
            "machine does not have; Debian's package ovmf has, or name such a build with --firmware and --nvram"
        )
    raise HostError(f"no OVMF here, to start by UEFI with: {how('ovmf')}, or name an image")


def read(name: str, *, secure_boot: bool = False, template: str = "") -> Firmware:
    """The firmware `name`, a path or "uefi". `template` is a file with the variables of a new machine.

    Raises BadInput, in a line, for what is none, and HostError when there is none here.
    """
    if name == UEFI:
        found = find(secure_boot)
        name, template = found.code, template or (found.enrolled if secure_boot else found.variables)
    path = Path(name)
    _check_mode(path)
    data = image(path, "UEFI", SMALLEST, LARGEST)
    if not _is_volume(data):
        raise BadInput(f"{path}: no UEFI image: it does not begin with a firmware volume")
    size = _variables_size(data)
    code, inside = data[size:], data[:size]
    if len(code) < SMALLEST:
        raise BadInput(f"{path}: no UEFI image: there is no code behind its variables")
    template = template or ("" if size else _sibling(path))
    variables = variables_of(Path(template)) if template else inside
    if not _fit(code, variables):
        raise BadInput(f"{path}: {template} does not belong to it: together they have no size that firmware has")
    return Firmware(code, variables)


def _is_volume(data: bytes) -> bool:
    return data[VOLUME_SIGNATURE_AT : VOLUME_SIGNATURE_AT + 4] == VOLUME_SIGNATURE


def _variables_size(data: bytes) -> int:
    """Bytes of the variables that an image begins with; 0: it is code alone."""
    if data[16:32] != VARIABLES_GUID:
        return 0
    at = int.from_bytes(data[32:40], "little")  # the volume's own size; what belongs to it follows, up to the code
    while at < len(data) and not (_is_volume(data[at : at + 64]) and data[at + 16 : at + 32] != VARIABLES_GUID):
        at += 4096
    return at


def _fit(code: bytes, variables: bytes) -> bool:
    whole = len(code) + len(variables)
    aligned = len(code) % 4096 == 0 and len(variables) % 4096 == 0 and whole & (whole - 1) == 0
    return aligned and whole <= LARGEST  # below are the interrupt controllers


def _check_mode(path: Path) -> None:
    """Refuse what would stop without a word: a build that wants system management mode."""
    if path.exists() and smm.needs_smm(str(path)):
        raise BadInput(
            f"{path} needs system management mode, which this machine does not have: --firmware uefi --secure-boot "
            "takes a build with Secure Boot that does without"
        )


def _sibling(path: Path) -> str:
    """The variables that a distribution puts beside its code."""
    for known in OVMF:
        if smm.same(str(path), known.code):
            return known.variables
    beside = path.with_name(path.name.replace("CODE", "VARS").replace("code", "vars"))
    if beside == path or not beside.exists():
        raise BadInput(f"{path}: there are no variables in it and none beside it: name them with --nvram-template")
    return str(beside)


def variables_of(path: Path) -> bytes:
    """A file of variables. Raises BadInput for what is none."""
    with Source(path, "UEFI variables") as source:
        if source.size > LARGEST or source.size % 4096 or source.head[16:32] != VARIABLES_GUID:
            raise BadInput(f"{path}: no UEFI variables: it does not begin with a volume of them")
        return bytes(source.map())


class Variables:
    """A machine's variables: the file at `path`, mapped, and this process's alone. It is made of `template` if need be.

    What the guest writes is in the file at once, as the kernel has it, and on the disk when it is closed.
    """

    def __init__(self, path: str, template: bytes) -> None:
        by_descriptor = path.startswith("/proc/")
        name = os.path.realpath(path) if by_descriptor else path
        try:
            if not os.path.lexists(path):
                _make(path, template)
            self.fd = os.open(path, os.O_RDWR | os.O_CLOEXEC | os.O_NOFOLLOW * (not by_descriptor))
        except OSError as error:
            why = "it is a symbolic link: name the file itself" if error.errno == errno.ELOOP else error.strerror
            raise BadInput(f"--nvram {name}: {why}") from error
        try:
            fcntl.flock(self.fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            size = os.fstat(self.fd).st_size
            if size != len(template) or os.pread(self.fd, 16, 16) != VARIABLES_GUID:
                raise BadInput(f"--nvram {name}: not this firmware's variables, which have {len(template)} bytes")
            self.data = mmap.mmap(self.fd, size)
        except BlockingIOError as error:
            os.close(self.fd)
            raise BadInput(f"--nvram {name}: another VM has it") from error
        except BaseException:
            os.close(self.fd)
            raise

    def close(self) -> None:
        self.data.flush()
        self.data.close()  # it has the file open, too, and so the lock
        os.close(self.fd)


def _make(path: str, template: bytes) -> None:
    """Whole or not at all."""
    fd, name = tempfile.mkstemp(prefix=".", dir=os.path.dirname(path) or ".")
    try:
        with os.fdopen(fd, "wb") as file:
            file.write(template)
            file.flush()
            os.fsync(file.fileno())
        os.link(name, path)
    except FileExistsError:
        pass  # another was faster
    finally:
        os.unlink(name)


def check_memory(size: int) -> None:
    """Raise BadInput when there is too little RAM: it would stop without a word."""
    if size < LEAST_MEMORY:
        raise BadInput(f"UEFI needs {LEAST_MEMORY // MIB} MiB of RAM (it has {size / MIB:g})")


def kernel(path: str, initrd: Sequence[str], cmdline: str, memory: int) -> dict[int, bytes]:
    """A kernel for firmware to start, as fw_cfg's items: it is a bzImage, or any other EFI program.

    With Secure Boot, OVMF refuses a program that is not signed, but starts a bzImage as an older boot loader would. Its
    initrd counts only where the header names a loader, so that is done here, as QEMU does it.

    Raises BadInput, in a line, for what is none, and for files that don't fit in `memory` bytes of RAM.
    """
    with ExitStack() as held:
        source = held.enter_context(Source(Path(path), "kernel"))
        if source.head[:2] != EFI_PROGRAM:
            raise BadInput(f"kernel {path}: UEFI starts EFI programs, which most bzImages are: it is none")
        parts = [held.enter_context(Source(Path(each), "initrd")) for each in initrd]
        need = source.size + sum(part.size for part in parts)
        if need > min(memory, MOST):
            raise BadInput(f"the kernel and initrd need {-(-need // MIB)} MiB of RAM (it has {memory / MIB:g})")
        return _items(bytes(source.map()), b"".join(part.map() for part in parts), cmdline)


def _items(kernel: bytes, initrd: bytes, cmdline: str) -> dict[int, bytes]:
    setup = bytearray()
    if kernel[SETUP_SIGNATURE_AT : SETUP_SIGNATURE_AT + 4] == b"HdrS":
        setup += kernel[: ((kernel[SETUP_SECTORS_AT] or 4) + 1) * SECTOR]
        setup[LOADER_AT] = setup[LOADER_AT] or UNKNOWN_LOADER
    parts = {
        (KERNEL_SIZE, KERNEL): kernel[len(setup) :],
        (SETUP_SIZE, SETUP): bytes(setup),
        (INITRD_SIZE, INITRD): initrd,
        (CMDLINE_SIZE, CMDLINE): cmdline.encode() + b"\0",
    }
    found: dict[int, bytes] = {}
    for (size, item), data in parts.items():
        found |= {size: len(data).to_bytes(4, "little"), item: data}
    return found
