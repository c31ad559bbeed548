"""`kvmkit host nested`: `modprobe -r kvm_intel; modprobe kvm_intel nested=1`, and /etc/modprobe.d/kvm_intel.conf."""

from __future__ import annotations

from kvmkit.errors import HostError
from kvmkit.host.changes.modules import choose_module, refuse_to_load
from kvmkit.host.checks.nesting import configured, truth
from kvmkit.host.context import Context
from kvmkit.host.journal import Journal
from kvmkit.host.plan import Plan, check_undo, make_parents, refuse_while_vms_run, undo_entries
from kvmkit.host.steps import Run, SetValue, WriteFile

TOPIC = "nested"


def enable(context: Context, journal: Journal, persist: bool, vendor: str | None = None) -> Plan:
    module = _module(context, vendor)
    plan = Plan(TOPIC, "nested enable")
    _switch(context, journal, plan, module, True, persist)
    return plan


def disable(context: Context, journal: Journal, persist: bool, vendor: str | None = None) -> Plan:
    """Take back what enable did; where nesting is then still on (it was before, or by the kernel's default), turn it
    off."""
    module = _module(context, vendor)
    plan = undo_entries(context.host, journal.of(TOPIC, "nested enable"))
    plan.topic, plan.action = TOPIC, "nested disable"
    check_undo(context.host, plan)
    reloads = any(isinstance(step, Run) for step in plan.steps)
    _switch(context, journal, plan, module, False, persist, running=not reloads)
    return plan


def _module(context: Context, vendor: str | None) -> str:
    module = choose_module(context, vendor)
    if module == "kvm_pvm":
        raise HostError("this kernel runs VMs by kvm_pvm, which can't nest; nesting needs VT-x or AMD-V")
    return module


def _switch(
    context: Context, journal: Journal, plan: Plan, module: str, on: bool, persist: bool, running: bool = True
) -> None:
    state = context.modules.state(module)
    current = truth(context.modules.parameter(module, "nested"))
    number, word = int(on), "on" if on else "off"
    reload: list[Run | SetValue] = []
    if state == "built in":
        if current is not None and current != on:
            line = f"{module}.nested={number}"
            raise HostError(f"{module} is built into this kernel: add {line} to the kernel's command line and restart")
        plan.notes.append(f"{module} is built in, and nesting is {word}")
        return
    if state == "loaded":
        if current is on and running:
            plan.notes.append(f"nesting is {word} already")
        elif running:
            refuse_while_vms_run(context, module)
            before = int(not on) if current is None else int(current)
            plan.steps.append(Run(["modprobe", "-r", module], undo=["modprobe", module, f"nested={before}"]))
            reload.append(Run(["modprobe", module, f"nested={number}"], undo=["modprobe", "-r", module]))
    elif on:
        if context.host.live or state == "missing":
            refuse_to_load(context, module)
        reload.append(Run(["modprobe", module, "nested=1"], undo=["modprobe", "-r", module]))
    if persist:
        _persist(context, journal, plan, module, on)
    plan.steps += reload


def _persist(context: Context, journal: Journal, plan: Plan, module: str, on: bool) -> None:
    host = context.host
    path = f"/etc/modprobe.d/{module}.conf"
    line = f"options {module} nested={int(on)}"
    planned = next((step for step in plan.steps if isinstance(step, WriteFile) and step.path == path), None)
    found = planned.content if planned is not None else host.data(path)
    lasting = configured(host, module)
    if planned is None and lasting is not None and lasting[1] == on:
        return
    ours = found is None or planned is not None or journal.wrote(path, found)
    if lasting is not None and lasting[0] != path and lasting[1] != on:
        plan.by_hand += [f"{lasting[0]} sets it the other way and is not overwritten; it needs instead the line:"]
        plan.by_hand += [f"  {line}"] if lasting[0] != "/proc/cmdline" else [f"  {module}.nested={int(on)}"]
        return
    if found and not ours:
        plan.by_hand += [f"{path} is yours and is not overwritten; add to it the line:", f"  {line}"]
        return
    if planned is not None and planned in plan.steps:
        plan.steps.remove(planned)
    plan.steps += make_parents(host, path)
    plan.steps.append(WriteFile(path, f"{line}\n".encode()))


def verify(context: Context, on: bool, vendor: str | None = None) -> str:
    """Read the parameter back after a reload; HostError when the kernel did not take it."""
    module = choose_module(context, vendor)
    path = f"/sys/module/{module}/parameters/nested"
    value = context.host.value(path)
    if value is None:
        if not on:
            return f"{module} is not loaded"
        raise HostError(f"{path} can't be read: is {module} loaded?")
    if truth(value) is not on:
        raise HostError(f"{path} is {value}: the kernel did not take it; does the processor offer it?")
    return f"{path}: {value}"
