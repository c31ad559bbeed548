"""Nesting: `cat /sys/module/kvm_intel/parameters/nested`, and what modprobe.d says for the next boot."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvmkit.host.context import Context
from kvmkit.host.report import Row
from kvmkit.host.system import Host

GROUP = "Nesting"
DIRECTORIES = ("/etc/modprobe.d", "/run/modprobe.d", "/usr/lib/modprobe.d", "/lib/modprobe.d")


def truth(value: str | None) -> bool | None:
    """A module parameter's Y/N/1/0."""
    return None if value is None else value.strip()[:1] in ("Y", "y", "1")


def configured(host: Host, module: str) -> tuple[str, bool] | None:
    """(file, on or off) of the setting of `nested` that modprobe will use; None when no file sets it.

    Files are read by name over all directories, a directory before hiding the same name in those after it; the last
    setting wins, as modprobe appends them all to the module's options."""
    files: dict[str, str] = {}
    for directory in DIRECTORIES:
        for name in host.names(directory):
            if name.endswith(".conf"):
                files.setdefault(name, f"{directory}/{name}")
    found = None
    for _, file in sorted(files.items()):
        for line in (host.text(file) or "").replace("\\\n", " ").splitlines():
            words = line.split()
            if len(words) > 2 and words[0] == "options" and words[1].replace("-", "_") == module:
                for word in words[2:]:
                    if match := re.fullmatch(r"nested=(\w)\w*", word):
                        found = file, match[1] in "1yY"
    for word in (host.text("/proc/cmdline") or "").split():
        if match := re.fullmatch(rf"{module.replace('_', '[-_]')}\.nested=(\w)\w*", word):
            found = "/proc/cmdline", match[1] in "1yY"
    return found


def rows(context: Context) -> Iterator[Row]:
    module = context.vendor_module
    if not context.host.is_x86 or not module:
        yield Row("nested", GROUP, "nested VMs", "note", "an x86 feature: not on this processor")
        return
    if module == "kvm_pvm":
        yield Row("nested", GROUP, "nested VMs", "note", "kvm_pvm shows its guests no virtualization")
        return
    on = truth(context.modules.parameter(module, "nested"))
    lasting = configured(context.host, module)
    if on is None:
        if not context.modules.running(module):
            yield Row("nested", GROUP, "nested VMs", "note", f"{module} is not loaded")
        else:
            yield Row("nested", GROUP, "nested VMs", "unknown", f"{module} does not tell")
    elif on:
        yield Row("nested", GROUP, "nested VMs", "ok", f"on: a guest with --cpu host sees {context.cpu.extension}")
    else:
        fix = "sudo kvmkit host nested enable --persist"
        yield Row("nested", GROUP, "nested VMs", "note", "off: guests can't use KVM themselves", fix)
    if lasting is not None:
        text = f"{'on' if lasting[1] else 'off'} by {lasting[0]}"
    else:
        text = "set nowhere: the kernel's default (on since Linux 4.20 for Intel, always for AMD)"
    yield Row("nested.persistent", GROUP, "after a restart", "note", text)
