"""The processor: who made it, whether it virtualizes, and why not when it does not."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvmkit.host.kernel import refusal
from kvmkit.host.system import Host

VENDORS = {
    "GenuineIntel": "intel",
    "CentaurHauls": "intel",  # VIA and Zhaoxin have VT-x, driven by kvm_intel
    "  Shanghai  ": "intel",
    "AuthenticAMD": "amd",
    "HygonGenuine": "amd",
}
NAMES = {"vmx": "VT-x", "svm": "AMD-V"}


@dataclass(frozen=True)
class Processor:
    """`extension` is 'vmx', 'svm', 'el2' (ARM) or ''. `module` is the vendor's KVM module, '' where there is none."""

    arch: str
    vendor: str
    model: str
    extension: str
    hypervisor: bool
    flags: frozenset[str]
    cores: int

    @property
    def module(self) -> str:
        return {"intel": "kvm_intel", "amd": "kvm_amd"}.get(self.vendor, "")


def read_processor(host: Host) -> Processor:
    """From /proc/cpuinfo, as lscpu does: the first processor's fields."""
    text = host.text("/proc/cpuinfo") or ""
    fields: dict[str, str] = {}
    for line in text.splitlines():
        key, colon, value = line.partition(":")
        if colon:
            fields.setdefault(key.strip(), value[1:] if value.startswith(" ") else value)
    flags = frozenset(fields.get("flags", fields.get("Features", "")).split())
    vendor = VENDORS.get(fields.get("vendor_id", ""), "")
    if "CPU implementer" in fields:
        vendor = "arm"
    extension = next((flag for flag in ("vmx", "svm") if flag in flags), "")
    if vendor == "arm" and (fields.get("CPU part", "").strip() == "0xc0f" or host.exists("/sys/module/kvm_arm")):
        extension = "el2"  # 0xc0f is the Cortex-A15, the first ARM core with virtualization extensions
    return Processor(
        arch=host.arch,
        vendor=vendor,
        model=fields.get("model name", fields.get("Processor", "")).strip(),
        extension=extension,
        hypervisor="hypervisor" in flags,
        flags=flags,
        cores=len(re.findall(r"^processor\s*:", text, re.MULTILINE)),
    )


def outer_hypervisor(host: Host, log: str | None) -> str:
    """The name of the hypervisor this system runs under, '' when nothing tells."""
    for line in (log or "").splitlines():
        if found := re.search(r"Hypervisor detected: (.+)", line):
            return found[1].strip()
    if found_type := host.value("/sys/hypervisor/type"):
        return found_type
    vendor = f"{host.value('/sys/class/dmi/id/sys_vendor') or ''} {host.value('/sys/class/dmi/id/product_name') or ''}"
    for mark in ("QEMU", "VMware", "VirtualBox", "Microsoft", "Xen", "Amazon", "Google", "KVM", "Parallels"):
        if mark.lower() in vendor.lower():
            return {"Microsoft": "Hyper-V", "Amazon": "EC2", "Google": "Google Compute Engine"}.get(mark, mark)
    return ""


# How each outer hypervisor is told to show its guest the extension.
SHOW_NESTED = {
    "kvm": "on the outer host: kvmkit host nested enable --persist, and start this machine with --cpu host",
    "qemu": "on the outer host: kvmkit host nested enable --persist, and start this machine with -cpu host",
    "vmware": "in the .vmx file of this machine: vhv.enable = \"TRUE\"",
    "virtualbox": "on the outer host: VBoxManage modifyvm NAME --nested-hw-virt on",
    "hyper-v": "on the outer host: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true",
    "microsoft": "on the outer host: Set-VMProcessor -VMName NAME -ExposeVirtualizationExtensions $true",
    "google": "create the instance with --enable-nested-virtualization",
    "ec2": "use a bare-metal (.metal) instance type",
}  # fmt: skip


@dataclass(frozen=True)
class Absence:
    """Why the extension is not there: 'hidden', 'bios', 'none' or 'unknown'; in words, and what to do."""

    kind: str
    text: str
    fix: str


def why_absent(host: Host, cpu: Processor, log: str | None) -> Absence:
    """The page's own reading of an empty `grep -E 'vmx|svm' /proc/cpuinfo`."""
    wanted = {"intel": "VT-x", "amd": "AMD-V (SVM)"}.get(cpu.vendor, "VT-x or AMD-V")
    said = refusal(log)
    if said is not None and said[0] == "bios":
        return Absence(
            "bios",
            f"{wanted} is switched off in the firmware (BIOS) setup; the kernel says: {said[2]}",
            f"systemctl reboot --firmware-setup    # then enable {wanted} there",
        )
    if cpu.hypervisor:
        outer = outer_hypervisor(host, log)
        fix = next((text for mark, text in SHOW_NESTED.items() if mark in outer.lower()), "")
        name = f" ({outer})" if outer else ""
        return Absence("hidden", f"this is a VM, and its hypervisor{name} hides {wanted} from it", fix)
    if log is None:
        return Absence(
            "unknown",
            f"no vmx or svm flag: none in this processor, or {wanted} is off in the BIOS; the kernel's log, which would"
            " tell, may not be read",
            "sudo dmesg | grep -iE 'kvm|vmx|svm|bios'",
        )
    return Absence("none", "no vmx or svm flag, and the kernel does not blame the BIOS: KVM can't be used here", "")
