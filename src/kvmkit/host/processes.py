"""Which processes run a VM, and the huge pages each holds."""

from __future__ import annotations

import re
from dataclasses import dataclass
from itertools import pairwise

from kvmkit.host.system import Host

NAME_OPTIONS = ("-name", "--name")


@dataclass(frozen=True)
class VmProcess:
    """`huge` is in bytes. `kvm` is whether it has a VM of KVM open; without, it is here for its huge pages."""

    pid: int
    command: str
    name: str
    kvm: bool
    huge: int

    def __str__(self) -> str:
        called = f" {self.name!r}" if self.name else ""
        return f"{self.command}{called} (pid {self.pid})"


def vm_processes(host: Host) -> list[VmProcess]:
    """Processes with a KVM VM, or with huge pages mapped. Without root, other users' descriptors can't be seen."""
    found = []
    for pid in host.process_ids():
        directory = f"/proc/{pid}"
        kvm = any(
            (target := host.link(f"{directory}/fd/{fd}")) is not None
            and (target == "/dev/kvm" or target.startswith("anon_inode:kvm-"))
            for fd in host.names(f"{directory}/fd")
        )
        status = host.text(f"{directory}/status") or ""
        huge = re.search(r"^HugetlbPages:\s+(\d+) kB", status, re.MULTILINE)
        size = int(huge[1]) << 10 if huge else 0
        if kvm or size:
            command = host.value(f"{directory}/comm") or "?"
            found.append(VmProcess(pid, command, _name(host, directory), kvm, size))
    return found


def _name(host: Host, directory: str) -> str:
    """The VM's name as its command line gives it (QEMU's `-name guest=web,...` too)."""
    words = (host.data(f"{directory}/cmdline") or b"").decode("utf-8", "replace").split("\0")
    for word, following in pairwise(words):
        if word in NAME_OPTIONS:
            first = following.partition(",")[0]
            return first.removeprefix("guest=")
    return next((word.partition("=")[2] for word in words if word.startswith("--name=")), "")
