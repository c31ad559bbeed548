"""What several checks look at, read once."""

from __future__ import annotations

import re
from collections.abc import Mapping
from functools import cached_property

from kvmkit.host.kernel import KernelConfig, Modules, kernel_log, read_config
from kvmkit.host.processes import VmProcess, vm_processes
from kvmkit.host.processor import Processor, read_processor
from kvmkit.host.system import Host


class Context:
    def __init__(self, host: Host, names: Mapping[int, str] | None = None) -> None:
        """`names`: VMs that are known, by their processes."""
        self.host = host
        self.names = names or {}

    @cached_property
    def cpu(self) -> Processor:
        return read_processor(self.host)

    @cached_property
    def config(self) -> KernelConfig:
        return read_config(self.host)

    @cached_property
    def modules(self) -> Modules:
        return Modules(self.host)

    @cached_property
    def log(self) -> str | None:
        return kernel_log(self.host)

    @cached_property
    def vms(self) -> list[VmProcess]:
        return vm_processes(self.host, self.names)

    @cached_property
    def vendor_module(self) -> str:
        """The module that drives this processor's extension: the one running, else the one for the vendor, else ''.

        A kernel may have another than the vendor's (kvm_pvm runs guests without any extension)."""
        for name in ("kvm_intel", "kvm_amd", "kvm_pvm"):
            if self.modules.running(name):
                return name
        return self.cpu.module

    @cached_property
    def groups(self) -> dict[str, tuple[int, tuple[str, ...]]]:
        """/etc/group: name -> (gid, members)."""
        found = {}
        for line in (self.host.text("/etc/group") or "").splitlines():
            fields = line.split(":")
            if len(fields) >= 4 and fields[2].isdigit():
                found[fields[0]] = (int(fields[2]), tuple(m for m in fields[3].split(",") if m))
        return found

    @cached_property
    def own_ids(self) -> tuple[int, frozenset[int]]:
        """(effective uid, all gids) of this process as /proc has them: a tree tells of the one it was recorded from."""
        status = self.host.text("/proc/self/status") or ""
        uid = re.search(r"^Uid:\s+\d+\s+(\d+)", status, re.MULTILINE)
        gids: set[int] = set()
        for line in re.findall(r"^(?:Gid|Groups):(.*)$", status, re.MULTILINE):
            gids.update(int(word) for word in line.split())
        return int(uid[1]) if uid else 0, frozenset(gids)
