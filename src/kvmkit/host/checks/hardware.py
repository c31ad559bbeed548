"""Hardware support: `lscpu | grep Virtualization`, `grep -E 'vmx|svm|0xc0f' /proc/cpuinfo`, and the IOMMU."""

from __future__ import annotations

from collections.abc import Iterator

from kvmkit.host.context import Context
from kvmkit.host.processor import NAMES, outer_hypervisor, why_absent
from kvmkit.host.report import Row

GROUP = "Hardware"


def rows(context: Context) -> Iterator[Row]:
    cpu, host = context.cpu, context.host
    cores = f"{cpu.cores} CPUs, " if cpu.cores else ""
    yield Row("cpu", GROUP, "processor", "note", f"{cpu.model or 'unnamed'} ({cores}{cpu.arch or 'unknown'})")
    if cpu.vendor == "arm" or not host.is_x86:
        if cpu.extension or context.modules.running("kvm") or host.exists("/dev/kvm"):
            text = f"{cpu.arch} with virtualization; our machine is an x86 PC, so it runs on tcg here"
        else:
            text = f"{cpu.arch}, no sign of virtualization; our machine is an x86 PC and runs on tcg here in any case"
        yield Row("cpu.virtualization", GROUP, "virtualization", "note", text)
    elif cpu.extension:
        yield Row("cpu.virtualization", GROUP, "virtualization", "ok", f"{NAMES[cpu.extension]} ({cpu.extension})")
    else:
        absence = why_absent(host, cpu, context.log)
        if context.vendor_module == "kvm_pvm":
            text = f"{absence.text}; this kernel's kvm_pvm gives a slower /dev/kvm without it"
            yield Row("cpu.virtualization", GROUP, "virtualization", "warn", text, absence.fix)
        else:
            yield Row("cpu.virtualization", GROUP, "virtualization", "fail", absence.text, absence.fix)
    if cpu.hypervisor:
        outer = outer_hypervisor(host, context.log) or "unnamed"
        yield Row("cpu.hypervisor", GROUP, "hypervisor", "note", f"this system is itself a VM ({outer})")
    if host.container:
        text = f"{host.container}: modules, huge pages and /dev/kvm are the outer host's to give"
        yield Row("container", GROUP, "container", "note", text)
    yield _iommu(context)


def _iommu(context: Context) -> Row:
    host = context.host
    groups = host.names("/sys/kernel/iommu_groups")
    units = host.names("/sys/class/iommu")
    if groups or units:
        text = f"on, {len(groups)} groups: devices can be passed through (VFIO)"
        return Row("iommu", GROUP, "IOMMU", "ok", text)
    tables = [name for name in ("DMAR", "IVRS", "IORT") if host.exists(f"/sys/firmware/acpi/tables/{name}")]
    if tables:
        option = {"DMAR": "intel_iommu=on", "IVRS": "amd_iommu=on"}.get(tables[0], "")
        text = f"the firmware describes one ({tables[0]}), the kernel does not use it: no device can be passed through"
        fix = f"add to the kernel's command line: {option}" if option else ""
        return Row("iommu", GROUP, "IOMMU", "note", text, fix)
    return Row("iommu", GROUP, "IOMMU", "note", "none, or off in the firmware; only passing devices through needs it")
