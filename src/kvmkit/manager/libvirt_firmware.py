"""The firmware in libvirt's <os>, both ways (libvirt.org, formatdomain: Operating system booting, BIOS bootloader)."""

from __future__ import annotations

from collections.abc import Callable
from os.path import abspath
from xml.etree.ElementTree import Element, SubElement

from kvmkit.manager.description import Firmware


def read_firmware(os: Element, leave_out: Callable[[Element, str], None]) -> Firmware:
    """`leave_out` is called for what has no counterpart, with where it is."""
    efi = os.get("firmware") == "efi"
    wanted = {part.get("name"): part.get("enabled") == "yes" for part in os.iterfind("firmware/feature")}
    secure = wanted.get("secure-boot", wanted.get("enrolled-keys", False))
    loader, nvram = os.find("loader"), os.find("nvram")
    code = bios = variables = template = ""
    if loader is not None:
        secure = secure or loader.get("secure") == "yes"
        if not _is_raw(loader, "format") or loader.get("stateless") == "yes":
            leave_out(loader, "domain/os")
            efi = True
        elif efi or loader.get("type") == "pflash":
            code = (loader.text or "").strip()
        else:
            bios = (loader.text or "").strip()
    if nvram is not None:
        source = nvram.find("source")
        variables = (nvram.text or "").strip() or ("" if source is None else source.get("file", ""))
        template = nvram.get("template", "")
        if not (_is_raw(nvram, "format") and _is_raw(nvram, "templateFormat")) or nvram.get("type", "file") != "file":
            leave_out(nvram, "domain/os")
            variables = template = ""
    return Firmware(
        bios=bios,
        code=code,
        variables=variables,
        made=bool(variables),
        secure=secure,
        keys=wanted.get("enrolled-keys", True),
        efi=efi and not code,
        template=template,
    )


def _is_raw(element: Element, key: str) -> bool:
    return element.get(key, "raw") == "raw"


def write_firmware(os: Element, firmware: Firmware) -> list[str]:
    """Returns what has no place there. Where libvirt 9 chooses the image, by features, it takes no path and no
    template; elsewhere no features."""
    if firmware.efi:
        os.set("firmware", "efi")
        asked = {"secure-boot": "yes", "enrolled-keys": "yes"} if firmware.secure else {}
        asked |= {} if firmware.keys else {"enrolled-keys": "no"}
        features = SubElement(os, "firmware") if asked else os
        for name, enabled in asked.items():
            SubElement(features, "feature", enabled=enabled, name=name)
    elif firmware.code:
        secure = "yes" if firmware.secure else "no"
        SubElement(os, "loader", readonly="yes", secure=secure, type="pflash").text = abspath(firmware.code)
    elif firmware.bios:
        SubElement(os, "loader", type="rom").text = abspath(firmware.bios)
    template = "" if firmware.efi else firmware.template
    if firmware.variables or template:
        nvram = SubElement(os, "nvram")
        if template:
            nvram.set("template", abspath(template))
        if firmware.variables:
            nvram.text = abspath(firmware.variables)
    if firmware.template and not template:
        return [f"the template of UEFI variables {firmware.template}: libvirt chooses one with the firmware"]
    return []
