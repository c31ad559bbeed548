"""`kvmkit host modules`: load KVM's modules now, and at every start."""

from __future__ import annotations

from kvmkit.errors import BadInput, HostError
from kvmkit.host.context import Context
from kvmkit.host.journal import Journal
from kvmkit.host.kernel import refusal
from kvmkit.host.plan import Plan, check_undo, refuse_while_vms_run, undo_entries, write_whole
from kvmkit.host.processor import why_absent
from kvmkit.host.steps import Run

TOPIC = "modules"
LOAD_FILE = "/etc/modules-load.d/kvm.conf"
BLACKLIST_FILE = "/etc/modprobe.d/kvm_blacklist.conf"
VENDOR_MODULES = {"intel": "kvm_intel", "amd": "kvm_amd"}


def choose_module(context: Context, vendor: str | None) -> str:
    """The vendor's module, for this processor or the one asked for; HostError when there is none."""
    if vendor:
        if vendor not in VENDOR_MODULES:
            raise BadInput(f"--vendor {vendor}: is intel or amd")
        return VENDOR_MODULES[vendor]
    if not context.host.is_x86:
        raise HostError(f"{context.cpu.arch}: KVM is part of the kernel on this processor, it has no vendor's module")
    if not context.vendor_module:
        raise HostError("the processor's vendor can't be told from /proc/cpuinfo; say --vendor intel or --vendor amd")
    return context.vendor_module


def enable(context: Context, journal: Journal, persist: bool, vendor: str | None = None) -> Plan:
    module = choose_module(context, vendor)
    plan = undo_entries(context.host, journal.of(TOPIC, "modules disable"))
    plan.topic, plan.action = TOPIC, "modules enable"
    state = context.modules.state(module)
    if state == "built in":
        plan.notes.append(f"{module} is built into this kernel: there is nothing to load")
        return plan
    if state == "loaded":
        plan.notes.append(f"{module} is loaded")
    else:
        if context.host.live or state == "missing":
            refuse_to_load(context, module)
        if not any(isinstance(step, Run) and step.argv == ["modprobe", module] for step in plan.steps):
            plan.steps.append(Run(["modprobe", module], undo=["modprobe", "-r", module]))
    if persist:
        write_whole(context.host, journal, plan, LOAD_FILE, module)
    return plan


def refuse_to_load(context: Context, module: str) -> None:
    """HostError where modprobe can't succeed, with the reason in words."""
    state, host = context.modules.state(module), context.host
    said = refusal(context.log)
    if not context.modules.installed:
        where = (
            "; this is a container: load it on its host" if host.container else "; restart into the installed kernel"
        )
        raise HostError(f"{module}: the running kernel's modules (/lib/modules/{host.release}) are not here{where}")
    if state == "missing":
        raise HostError(f"{module}: the kernel {host.release} does not have it; install a kernel with CONFIG_KVM")
    if not context.cpu.extension and host.exists("/proc/cpuinfo"):
        absence = why_absent(host, context.cpu, context.log)
        raise HostError(f"{module} can't be loaded: {absence.text}{'; ' + absence.fix if absence.fix else ''}")
    if said is not None and said[0] == "bios":
        raise HostError(f"{module} can't be loaded: {said[1]}; the kernel says: {said[2]}")


def disable(context: Context, journal: Journal, persist: bool, vendor: str | None = None) -> Plan:
    entries = journal.of(TOPIC, "modules enable")
    plan = undo_entries(context.host, entries)
    plan.topic, plan.action = TOPIC, "modules disable"
    check_undo(context.host, plan)
    module = choose_module(context, vendor)
    state = context.modules.state(module)
    if state == "built in":
        plan.notes.append(f"{module} is built into this kernel and can't be unloaded")
    elif state == "loaded":
        refuse_while_vms_run(context, module)
        if not any(isinstance(step, Run) and step.argv == ["modprobe", "-r", module] for step in plan.steps):
            plan.steps.append(Run(["modprobe", "-r", module], undo=["modprobe", module]))
    if persist:
        write_whole(context.host, journal, plan, BLACKLIST_FILE, f"blacklist {module}")
    return plan
