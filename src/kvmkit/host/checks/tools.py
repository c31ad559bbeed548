"""Firmware images and the programs kvmkit works with."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass

from kvmkit.firmware import OVMF, SEABIOS
from kvmkit.host.context import Context
from kvmkit.host.report import Row
from kvmkit.host.system import Host

GROUP = "Firmware"
TOOLS = "Programs"

DESCRIPTORS = ("/etc/qemu/firmware", "/usr/share/qemu/firmware")
IMAGE_DIRECTORIES = (
    "/usr/share/OVMF",
    "/usr/share/edk2/x64",
    "/usr/share/edk2-ovmf/x64",
    "/usr/share/edk2/ovmf",
    "/usr/share/edk2-ovmf",
    "/usr/share/qemu",
    "/usr/share/ovmf",
)


@dataclass(frozen=True)
class Firmware:
    """One OVMF image. `keys` is whether its variable template has Secure Boot keys enrolled; `smm`: needs SMM."""

    code: str
    template: str
    secure_boot: bool
    keys: bool
    smm: bool


def find_firmware(host: Host) -> list[Firmware]:
    """x86-64 UEFI images: as the distribution describes them for QEMU (docs/interop/firmware.json), else by name."""
    found: dict[tuple[str, str], Firmware] = {}
    for directory in DESCRIPTORS:
        for name in host.names(directory):
            if name.endswith(".json") and (firmware := _described(host, f"{directory}/{name}")):
                found.setdefault((firmware.code, firmware.template), firmware)
    if found:
        return list(found.values())
    for directory in IMAGE_DIRECTORIES:
        for name in host.names(directory):
            lower = name.lower()
            if lower.startswith("ovmf_code") and lower.endswith((".fd", ".bin")):
                secure = "secboot" in lower or ".ms." in lower
                code = f"{directory}/{name}"
                found.setdefault((code, ""), Firmware(code, "", secure, ".ms." in lower, secure))
    return list(found.values())


def _described(host: Host, file: str) -> Firmware | None:
    try:
        description = json.loads(host.text(file) or "")
        if not any(target["architecture"] == "x86_64" for target in description["targets"]):
            return None
        mapping = description["mapping"]
        if "uefi" not in description["interface-types"] or mapping["device"] != "flash":
            return None
        code = mapping["executable"]["filename"]
        template = mapping.get("nvram-template", {}).get("filename", "")
        features = description["features"]
        if not isinstance(code, str) or not isinstance(template, str) or not host.exists(code):
            return None
        return Firmware(
            code, template, "secure-boot" in features, "enrolled-keys" in features, "requires-smm" in features
        )
    except (ValueError, KeyError, TypeError, AttributeError):
        return None


def firmware_rows(context: Context) -> Iterator[Row]:
    host = context.host
    bios = next((path for path in SEABIOS if host.exists(path)), "")
    if bios:
        yield Row("seabios", GROUP, "SeaBIOS", "ok", f"{bios}: starts disks with a boot loader")
    else:
        text = "none: a disk with a boot loader needs it (--firmware bios)"
        yield Row("seabios", GROUP, "SeaBIOS", "note", text, host.install("seabios"))
    images = find_firmware(host)
    if not images:
        text = "none: only guests that start by UEFI need it"
        yield Row("ovmf", GROUP, "OVMF", "note", text, host.install("ovmf"))
        return
    for number, image in enumerate(images):
        template = f" + {image.template.rpartition('/')[2]}" if image.template else ""
        yield Row(f"ovmf.{number}", GROUP, "OVMF", "ok", f"{image.code}{template}: {_can(host, image)}")
    if not any(image.secure_boot or _enrolled(host, image.code) for image in images):
        text = "none of these images has Secure Boot"
        yield Row("ovmf.secureboot", GROUP, "Secure Boot", "note", text, host.install("ovmf"))


def _can(host: Host, image: Firmware) -> str:
    """What it is good for, in words."""
    if _enrolled(host, image.code):  # though its distribution's description is silent about it
        return "--firmware uefi, with Secure Boot (--secure-boot), and without SMM"
    if not image.secure_boot:
        return "--firmware uefi; not described as having Secure Boot"
    keys = "keys enrolled" if image.keys else "no keys enrolled"
    return f"Secure Boot, {keys}" + (", needs SMM: for QEMU, kvmkit's machine has none" if image.smm else "")


def _enrolled(host: Host, code: str) -> str:
    """The variables with keys for a build that has Secure Boot without system management mode."""
    return next((one.enrolled for one in OVMF if one.code == code and one.enrolled and host.exists(one.enrolled)), "")


PROGRAMS: tuple[tuple[str, tuple[str, ...], str], ...] = (
    ("swtpm", ("swtpm",), "a TPM for the guest"),
    ("passt", ("passt",), "networking without root"),
    (
        "virtiofsd",
        ("/usr/libexec/virtiofsd", "/usr/lib/qemu/virtiofsd", "/usr/lib/virtiofsd", "virtiofsd"),
        "shared directories",
    ),
    ("qemu-img", ("qemu-img",), "converts disk images"),
    ("qemu-storage-daemon", ("qemu-storage-daemon",), "qcow2, LUKS and NBD disks"),
    ("kmod", ("modprobe",), "loads modules (modprobe)"),
)


def program_rows(context: Context) -> Iterator[Row]:
    for thing, places, use in PROGRAMS:
        path = context.host.program(*places)
        if path:
            yield Row(f"tool.{thing}", TOOLS, thing, "ok", f"{path}: {use}")
        else:
            text = f"not installed: {use}"
            yield Row(f"tool.{thing}", TOOLS, thing, "note", text, context.host.install(thing))
