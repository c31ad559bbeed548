"""Which processes run a VM, and the huge pages each holds."""

from __future__ import annotations

import re
from collections.abc import Mapping
from dataclasses import dataclass
from itertools import pairwise

from kvmkit.host.system import Host

NAME_OPTIONS = ("-name", "--name")
BACKGROUND = "kvmkit.manager.process"
"""What runs a VM of kvmkit's in the background; its name is the next word."""


@dataclass(frozen=True)
class VmProcess:
    """`huge` is in bytes. `kvm` is whether it has a VM of KVM open; without, it is here for its huge pages.

    `pages`: how many huge pages of each size (bytes) it holds; `transparent`: bytes of it on transparent ones.
    """

    pid: int
    command: str
    name: str
    kvm: bool
    huge: int
    pages: tuple[tuple[int, int], ...] = ()
    transparent: int = 0

    def __str__(self) -> str:
        called = f" {self.name!r}" if self.name else ""
        return f"{self.command}{called} (pid {self.pid})"


def vm_processes(host: Host, names: Mapping[int, str] | None = None) -> list[VmProcess]:
    """Processes with a KVM VM, or with huge pages mapped. Without root, other users' descriptors can't be seen.

    `names` are VMs that are known, by their processes.
    """
    names = names or {}
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
        if kvm or size or pid in names:
            command = host.value(f"{directory}/comm") or "?"
            pages, transparent = huge_pages(host, pid)
            listed = tuple(sorted(pages.items()))
            name = names.get(pid) or _name(host, directory)
            found.append(VmProcess(pid, command, name, kvm, size, listed, transparent))
    return found


SMAPS = re.compile(
    r"^(KernelPageSize|\w+_Hugetlb|AnonHugePages|ShmemPmdMapped|FilePmdMapped): +(\d+) kB$", re.MULTILINE
)


def huge_pages(host: Host, pid: int) -> tuple[dict[int, int], int]:
    """({page size in bytes: pages}, bytes on transparent huge pages) that a process has in its memory: reserved pages
    of each size, and what the kernel put on huge pages by itself. From /proc/PID/smaps; of another user's process
    root alone may see them."""
    pages: dict[int, int] = {}
    transparent = size = 0
    for key, text in SMAPS.findall(host.text(f"/proc/{pid}/smaps") or ""):
        count = int(text) << 10
        if key == "KernelPageSize":
            size = count
        elif not key.endswith("_Hugetlb"):
            transparent += count
        elif count and size:
            pages[size] = pages.get(size, 0) + count // size
    return pages, transparent


def _name(host: Host, directory: str) -> str:
    """The VM's name as its command line gives it (QEMU's `-name guest=web,...` too)."""
    words = (host.data(f"{directory}/cmdline") or b"").decode("utf-8", "replace").split("\0")
    for word, following in pairwise(words):
        if word == BACKGROUND:
            return following
        if word in NAME_OPTIONS:
            first = following.partition(",")[0]
            return first.removeprefix("guest=")
    return next((word.partition("=")[2] for word in words if word.startswith("--name=")), "")
