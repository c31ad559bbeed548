"""Huge pages as the kernel has them: sizes, counts, mounts; and how many a VM's memory takes."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvmkit.errors import BadInput
from kvmkit.host.system import Host

MIB = 1 << 20
GIB = 1 << 30
POOLS = "/sys/kernel/mm/hugepages"
MOUNT_POINT = "/dev/hugepages"
MOUNT_MODE = "01770"
LARGEST_MEMORY = 1 << 52  # bytes: no x86 processor addresses more

UNITS = {"": MIB, "K": 1 << 10, "M": MIB, "G": GIB, "T": 1 << 40}


def parse_size(text: str, what: str) -> int:
    """'1G', '512M', '1024' (MiB, as QEMU's -m) -> bytes."""
    found = re.fullmatch(r"(\d{1,15})\s*([KMGT]?)(?:i?B)?", text.strip(), re.IGNORECASE)
    if not found or not int(found[1]):
        raise BadInput(f"{what}: {text!r} is no size; write it like 512M or 1G (a bare number is MiB)")
    size = int(found[1]) * UNITS[found[2].upper()]
    if size > LARGEST_MEMORY:
        raise BadInput(f"{what}: {text} is more than any machine has")
    return size


def pages_for(memory: int, size: int) -> int:
    """How many pages of `size` bytes to reserve for `memory` bytes of guest RAM.

    Pages up to 2 MiB: what the RAM takes and a sixteenth for what the VMM puts beside it, rounded up to ten, so that
    1 GiB takes 512 + 32 -> 550. A larger page is itself more than that margin: RAM rounded up to whole pages.
    """
    exact = -(-memory // size)
    if size > 32 * MIB:
        return exact
    return -(-(exact + exact // 16) // 10) * 10


def show_size(size: int) -> str:
    """Bytes -> '2M', '1G'."""
    for unit, letter in ((GIB, "G"), (MIB, "M"), (1 << 10, "K")):
        if size >= unit and size % unit == 0:
            return f"{size // unit}{letter}"
    return str(size)


@dataclass(frozen=True)
class Pool:
    """The huge pages of one size, of the host or one NUMA node. Counts are pages, `size` is bytes."""

    size: int
    total: int
    free: int
    reserved: int
    surplus: int
    directory: str

    @property
    def available(self) -> int:
        """Free and promised to nobody."""
        return max(0, self.free - self.reserved)


def pools(host: Host, node: int | None = None) -> list[Pool]:
    base = POOLS if node is None else f"/sys/devices/system/node/node{node}/hugepages"
    found = []
    for name in host.names(base):
        if match := re.fullmatch(r"hugepages-(\d+)kB", name):
            directory = f"{base}/{name}"
            total, free, reserved, surplus = (
                host.number(f"{directory}/{file}") or 0
                for file in ("nr_hugepages", "free_hugepages", "resv_hugepages", "surplus_hugepages")
            )
            found.append(Pool(int(match[1]) << 10, total, free, reserved, surplus, directory))
    if not found and node is None and (default := default_size(host)):
        info = meminfo(host)  # a kernel without that part of sysfs, or a container that hides it
        total, free, reserved, surplus = (
            info.get(f"HugePages_{name}", 0) for name in ("Total", "Free", "Rsvd", "Surp")
        )
        found.append(Pool(default, total, free, reserved, surplus, ""))
    return sorted(found, key=lambda pool: pool.size)


def pool(host: Host, size: int, node: int | None = None) -> Pool | None:
    return next((p for p in pools(host, node) if p.size == size), None)


def nodes(host: Host) -> list[int]:
    return sorted(int(name[4:]) for name in host.names("/sys/devices/system/node") if re.fullmatch(r"node\d+", name))


def meminfo(host: Host) -> dict[str, int]:
    """/proc/meminfo: kB are given as bytes, the HugePages_ counts as they are."""
    found = {}
    for name, count, unit in re.findall(r"^(\w+):\s+(\d+)( kB)?$", host.text("/proc/meminfo") or "", re.MULTILINE):
        found[name] = int(count) << 10 if unit else int(count)
    return found


def default_size(host: Host) -> int:
    """Hugepagesize of /proc/meminfo in bytes; 0 when the kernel has no huge pages."""
    return meminfo(host).get("Hugepagesize", 0)


def unbroken(host: Host, size: int) -> int | None:
    """How many pages of `size` bytes stand free in one piece this moment (/proc/buddyinfo); None when unknown."""
    order = (size >> 12).bit_length() - 1
    text = host.text("/proc/buddyinfo")
    if text is None:
        return None
    total, known = 0, False
    for line in text.splitlines():
        counts = [int(word) for word in line.partition("zone")[2].split()[1:] if word.isdigit()]
        if len(counts) > order:
            known = True
            total += sum(count << (index - order) for index, count in enumerate(counts) if index >= order)
    return total if known else None


@dataclass(frozen=True)
class Mount:
    """A mounted hugetlbfs. `mode` is octal text as /proc/mounts has it (1770), `size` bytes (0: the default size)."""

    point: str
    mode: str
    gid: int
    size: int
    options: str


def mounts(host: Host) -> list[Mount]:
    found = []
    for line in (host.text("/proc/self/mounts") or host.text("/proc/mounts") or "").splitlines():
        words = line.split()
        if len(words) < 4 or words[2] != "hugetlbfs":
            continue
        options = dict(option.partition("=")[::2] for option in words[3].split(","))
        gid = options.get("gid", "0")
        size = 0
        if asked := options.get("pagesize"):
            try:
                size = parse_size(asked, "pagesize")
            except BadInput:
                pass
        found.append(
            Mount(words[1], options.get("mode", "755").lstrip("0"), int(gid) if gid.isdigit() else 0, size, words[3])
        )
    return found
