"""What a machine is to be, as plain data: checked before anything is made."""

from __future__ import annotations

import os
import re
from typing import Literal

import msgspec

from kvmkit.errors import BadInput

MIB = 1 << 20
GIB = 1 << 30
SMALLEST = 1 * MIB
PAGE = 4096
MAX_CPUS = 4096
_UNITS = {"": MIB, "k": 1 << 10, "m": MIB, "g": GIB, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine. Sizes are bytes, times seconds, paths as they are on the host.

    `console`: "log" keeps the end of what the guest says on its first serial port; "attach" also passes it on to
    the descriptors that `Machine` is given, both ways.
    """

    kernel: str
    initrd: tuple[str, ...] = ()
    append: str = ""
    accel: str = "auto"
    cpu: str = "max"
    cpus: int = 1
    memory: int = 512 * MIB
    console: Literal["log", "attach"] = "log"
    debug_exit: bool = False
    reboot: bool = False
    """Start again when the guest resets; without it, a reset ends the machine."""
    triple_fault: Literal["end", "reset"] = "end"
    """What a triple fault is: the end, with a report, or (as on a PC) a reset."""
    timeout: float | None = None
    hugepages: Literal["", "default", "2M", "1G", "transparent"] = ""
    """Guest RAM on reserved huge pages of the kernel's default size or of this one, or on transparent ones."""
    memory_path: str = ""
    """Guest RAM in a file here: a mount of hugetlbfs, as QEMU's -mem-path."""
    preallocate: bool = False
    """Have all of guest RAM before the guest starts."""
    nested: bool | None = None
    """Whether the guest sees vmx or svm, to run VMs of its own; None: as the CPU model has it."""

    @property
    def cpu_text(self) -> str:
        """The CPU model with its changes, as engines take it."""
        return self.cpu if self.nested is None else f"{self.cpu},{'+' if self.nested else '-'}nested"

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be. Engine, model and files are looked at when they are used."""
        if self.cpus < 1 or self.cpus > MAX_CPUS:
            raise BadInput(f"--cpus {self.cpus}: a machine has 1 to {MAX_CPUS} vCPUs")
        check_memory(self.memory, f"memory of {self.memory} bytes")
        if self.timeout is not None and not 0 < self.timeout < 1e9:
            raise BadInput(f"--timeout {self.timeout:g}: give seconds, more than 0")
        if "\0" in self.append:
            raise BadInput("--append: a kernel command line can't hold a null byte")


def parse_size(text: str, what: str = "--memory") -> int:
    """Bytes for 512M, 2G, 1.5G or 512 (MiB), rounded up to pages. Raises BadInput for what can't be."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"{what} {text}: not a size; give a number and a unit, such as 512M or 2G")
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if len(match[1]) < 20 else 1 << 62
    size = (size + PAGE - 1) // PAGE * PAGE
    check_memory(size, f"{what} {text}")
    return size


def check_memory(size: int, where: str) -> None:
    """Raise BadInput unless a guest can have `size` bytes on this host."""
    if size < SMALLEST:
        raise BadInput(f"{where}: a machine needs at least {SMALLEST // MIB}M")
    if size % PAGE:
        raise BadInput(f"{where}: not a multiple of {PAGE}")
    host = host_memory()
    if size > host:
        raise BadInput(f"{where}: more than the {host // MIB}M this host has")


def host_memory() -> int:
    """Bytes of RAM in this host."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
