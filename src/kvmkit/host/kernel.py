"""The kernel's own account: its configuration, its modules, what it logged."""

from __future__ import annotations

import gzip
import os
import re
import zlib
from dataclasses import dataclass
from typing import Literal

from kvmkit.host.system import Host

Option = Literal["y", "m", "missing", "unknown"]
ModuleState = Literal["loaded", "built in", "available", "missing", "unknown"]

MOST_CONFIG = 4 << 20  # bytes; a kernel's configuration is about 300 KiB


@dataclass(frozen=True)
class KernelConfig:
    """`source` is the file read, '' when there was none: every option is then unknown, not missing."""

    source: str
    options: dict[str, str]

    def option(self, name: str) -> Option:
        name = name.removeprefix("CONFIG_")
        if not self.source:
            return "unknown"
        value = self.options.get(name)
        if value == "y":
            return "y"
        return "m" if value == "m" else "missing"


def read_config(host: Host) -> KernelConfig:
    """From /proc/config.gz, or where distributions install it."""
    release = host.release
    places = ["/proc/config.gz", f"/boot/config-{release}", f"/usr/lib/modules/{release}/config"]
    places += [f"/lib/modules/{release}/config", f"/lib/kernel/config-{release}"]
    for place in places:
        found = host.data(place)
        if not found:
            continue
        if place.endswith(".gz"):
            try:
                found = zlib.decompressobj(wbits=31).decompress(found, MOST_CONFIG)
            except (gzip.BadGzipFile, zlib.error, EOFError):
                continue
        options = dict(re.findall(r"^CONFIG_(\w+)=(.*)$", found.decode("utf-8", "replace"), re.MULTILINE))
        if not options:
            continue
        return KernelConfig(place, options)
    return KernelConfig("", {})


@dataclass(frozen=True)
class LoadedModule:
    name: str
    size: int
    users: int
    used_by: tuple[str, ...]


def loaded_modules(host: Host) -> dict[str, LoadedModule]:
    """What lsmod shows, from /proc/modules (which is there without kmod)."""
    found: dict[str, LoadedModule] = {}
    for line in (host.text("/proc/modules") or "").splitlines():
        words = line.split()
        if len(words) >= 4 and words[1].isdigit():
            used_by = tuple(u for u in words[3].split(",") if u not in ("", "-"))
            users = int(words[2]) if words[2].isdigit() else 0
            found[words[0]] = LoadedModule(words[0], int(words[1]), users, used_by)
    return found


class Modules:
    """Which modules this kernel has. Read once; `state()` then answers by name."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.loaded = loaded_modules(host)
        directory = f"/lib/modules/{host.release}"
        self.directory = directory if host.exists(directory) else f"/usr/lib/modules/{host.release}"
        self.installed = host.exists(self.directory)
        self.available = self._names("modules.dep", ":")
        self.built_in = self._names("modules.builtin", "\n")

    def _names(self, file: str, end: str) -> set[str]:
        names = set()
        for line in (self.host.text(f"{self.directory}/{file}") or "").splitlines():
            base = line.partition(end)[0].rpartition("/")[2]
            names.add(base.partition(".ko")[0].replace("-", "_"))
        return names

    def state(self, name: str) -> ModuleState:
        name = name.replace("-", "_")
        if name in self.loaded:
            return "loaded"
        if name in self.built_in or self.host.exists(f"/sys/module/{name}"):
            return "built in"
        if name in self.available:
            return "available"
        return "missing" if self.installed and (self.available or self.built_in) else "unknown"

    @property
    def complete(self) -> bool:
        """Whether all modules of the kernel are installed: what picks some leaves the list of them all away."""
        return self.host.exists(f"{self.directory}/modules.order")

    def running(self, name: str) -> bool:
        return self.state(name) in ("loaded", "built in")

    def parameter(self, module: str, name: str) -> str | None:
        return self.host.value(f"/sys/module/{module}/parameters/{name}")


def kernel_log(host: Host) -> str | None:
    """What dmesg prints, or None when nobody lets us read it (dmesg_restrict, a container, no dmesg)."""
    if host.live:
        ring = _read_ring("/dev/kmsg")
        if ring:
            return ring
        told = host.run(["dmesg"], timeout=5)
        if told.status == 0 and told.output:
            return told.output
        told = host.run(["journalctl", "-k", "-b", "-o", "cat", "--no-pager"], timeout=5)
        if told.status == 0 and "Linux version" in told.output:
            return told.output
    return host.text("/var/log/dmesg") or host.text("/var/log/kern.log")


def _read_ring(device: str) -> str:
    """Every record of /dev/kmsg, each `priority,sequence,time,flags;text`."""
    try:
        fd = os.open(device, os.O_RDONLY | os.O_NONBLOCK)
    except OSError:
        return ""
    lines: list[str] = []
    try:
        while len(lines) < 100_000:
            try:
                record = os.read(fd, 8192)
            except BrokenPipeError:
                continue  # records were overwritten while we read: go on with the oldest left
            except OSError:
                break
            if not record:
                break
            lines.append(record.decode("utf-8", "replace").partition(";")[2].partition("\n")[0])
    finally:
        os.close(fd)
    return "\n".join(lines)


# What kvm, kvm_intel, kvm_amd and the CPU setup code log when they refuse, over the kernel versions; and what it means.
REFUSALS: tuple[tuple[str, str, str], ...] = (
    (
        r"disabled by (the )?bios|disabled \(by bios\)|not enabled \(by bios\)|VMX \(outside TXT\) disabled",
        "bios",
        "the processor has it, and it is switched off in the firmware (BIOS) setup",
    ),
    (
        r"kvm: no hardware support|has no hardware support|(VMX|SVM) not (supported|available)|no (VMX|SVM) support"
        r"|VMX not supported by CPU|SVM not supported by CPU",
        "hardware",
        "this processor has no hardware virtualization, or a hypervisor hides it",
    ),
    (r"kvm: already loaded (the other|vendor) module", "other", "another vendor's KVM module is loaded already"),
    (r"HYP mode not available|not booted in HYP|KVM: HYP", "hardware", "the firmware did not start Linux in EL2 (HYP)"),
    (r"kvm.*module verification failed|Loading of unsigned module is rejected|Lockdown:.*unsigned module", "signature",
     "the kernel takes signed modules only (Secure Boot lockdown)"),
    (r"kvm.*(disagrees about version of symbol|Unknown symbol|version magic)", "version",
     "the module was built for another kernel"),
)  # fmt: skip


def refusal(log: str | None) -> tuple[str, str, str] | None:
    """The newest reason the kernel gave for not offering KVM: (kind, meaning, its own line)."""
    for line in reversed((log or "").splitlines()):
        for pattern, kind, meaning in REFUSALS:
            if re.search(pattern, line, re.IGNORECASE) and re.search(r"kvm|vmx|svm|module|hyp", line, re.IGNORECASE):
                return kind, meaning, line.strip()
    return None
