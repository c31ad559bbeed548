"""`kvmkit host hugepages`: the mount, the fstab line, the reservation and its persistence."""

from __future__ import annotations

import re
from dataclasses import dataclass

from kvmkit.errors import BadInput, HostError
from kvmkit.host import pages
from kvmkit.host.changes.groups import GROUP, plan_group
from kvmkit.host.context import Context
from kvmkit.host.journal import Journal
from kvmkit.host.plan import Plan, make_parents, undo_entries, write_whole
from kvmkit.host.steps import MakeDirectory, Run, SetValue, WriteFile

TOPIC = "hugepages"
FSTAB = "/etc/fstab"
SYSCTL_FILE = "/etc/sysctl.d/40-hugepage.conf"
TMPFILES_FILE = "/etc/tmpfiles.d/40-hugepage.conf"
PROC_VALUE = "/proc/sys/vm/nr_hugepages"


@dataclass(frozen=True)
class Wanted:
    """`memory` and `size` in bytes; `size` None is the kernel's default size; `node` None is all NUMA nodes."""

    memory: int
    size: int | None = None
    node: int | None = None


@dataclass(frozen=True)
class Reservation:
    """What is to be reserved: `pages` of `size` bytes by writing the file `value`."""

    pages: int
    size: int
    value: str
    node: int | None


def reservation(context: Context, wanted: Wanted) -> Reservation:
    host = context.host
    default = pages.default_size(host)
    size = wanted.size or default or 2 * pages.MIB
    if wanted.node is not None and wanted.node not in pages.nodes(host):
        known = ", ".join(str(node) for node in pages.nodes(host)) or "none"
        raise BadInput(f"--node {wanted.node}: this host has the NUMA nodes {known}")
    pool = pages.pool(host, size, wanted.node)
    if pool is None and host.exists("/proc/meminfo"):
        sizes = ", ".join(pages.show_size(pool.size) for pool in pages.pools(host))
        if not sizes:
            raise HostError("this kernel has no huge pages (CONFIG_HUGETLBFS), or a container hides them")
        why = "; 1G pages need the CPU flag pdpe1gb" if size == pages.GIB and not host_has_1g(context) else ""
        raise BadInput(f"--size {pages.show_size(size)}: this kernel has huge pages of {sizes}{why}")
    whole = wanted.node is None and size == (default or 2 * pages.MIB)
    value = PROC_VALUE if whole or pool is None or not pool.directory else f"{pool.directory}/nr_hugepages"
    return Reservation(pages.pages_for(wanted.memory, size), size, value, wanted.node)


def host_has_1g(context: Context) -> bool:
    return "pdpe1gb" in context.cpu.flags


def mount_point(context: Context, size: int) -> tuple[str, str]:
    """(where pages of that size are mounted, the mount option that asks for the size)."""
    default = pages.default_size(context.host)
    if size == (default or 2 * pages.MIB):
        return pages.MOUNT_POINT, ""
    name = pages.show_size(size)
    return f"{pages.MOUNT_POINT}{name}", f",pagesize={name}"


def enable(context: Context, journal: Journal, wanted: Wanted, persist: bool) -> Plan:
    host = context.host
    plan = Plan(TOPIC, "hugepages enable")
    asked = reservation(context, wanted)
    point, option = mount_point(context, asked.size)
    _check_memory(context, asked)
    gid = plan_group(context, plan)
    options = f"mode={pages.MOUNT_MODE},gid={gid}{option}"
    mounted = next((mount for mount in pages.mounts(host) if mount.point == point), None)
    fit = mounted is not None and mounted.mode == "1770" and mounted.gid == gid
    if mounted is not None and not fit:
        old = f"mode=0{mounted.mode},gid={mounted.gid}{option}"
        again = ["mount", "-t", "hugetlbfs", "-o", old, "hugetlbfs", point]
        plan.steps.append(Run(["umount", point], undo=again))
    if not host.exists(point) and mounted is None:
        plan.steps.append(MakeDirectory(point, live=True))
    in_fstab = _fstab(context, plan, point, options, gid) if persist else _fits_fstab(context, point, gid)
    if not fit:
        command = ["mount", point] if in_fstab else ["mount", "-t", "hugetlbfs", "-o", options, "hugetlbfs", point]
        plan.steps.append(Run(command, undo=["umount", point]))
    current = host.number(asked.value) or 0
    if current < asked.pages:
        plan.steps.append(SetValue(asked.value, str(asked.pages)))
    elif host.live:
        plan.notes.append(f"{current} pages of {pages.show_size(asked.size)} are reserved already")
    if persist:
        _persist(context, journal, plan, asked)
    return plan


def _check_memory(context: Context, asked: Reservation) -> None:
    """HostError when the host's memory could not hold the pages at all."""
    info = pages.meminfo(context.host)
    total, need = info.get("MemTotal"), asked.pages * asked.size
    if total is not None and need > total * 9 // 10:
        size = pages.show_size(asked.size)
        raise HostError(
            f"{asked.pages} pages of {size} are {need >> 20} MiB, and this host has {total >> 20} MiB in all, some of"
            " which it needs itself: ask for less memory"
        )


def _fstab_entry(context: Context, point: str) -> list[str] | None:
    for line in (context.host.text(FSTAB) or "").splitlines():
        fields = line.split("#")[0].split()
        if len(fields) >= 4 and fields[1] == point:
            return fields
    return None


def _fits_fstab(context: Context, point: str, gid: int) -> bool:
    entry = _fstab_entry(context, point)
    if entry is None or entry[2] != "hugetlbfs":
        return False
    options = dict(option.partition("=")[::2] for option in entry[3].split(","))
    return options.get("mode", "").lstrip("0") == "1770" and options.get("gid") in (GROUP, str(gid))


def _fstab(context: Context, plan: Plan, point: str, options: str, gid: int) -> bool:
    """Plan the fstab line; True when /etc/fstab has or will have one that fits."""
    line = f"hugetlbfs {point} hugetlbfs {options} 0 0"
    if _fits_fstab(context, point, gid):
        return True
    if _fstab_entry(context, point) is not None:
        plan.by_hand += [f"{FSTAB} has a line of yours for {point}, which is not overwritten; make it:", f"  {line}"]
        return False
    text = context.host.data(FSTAB) or b""
    text += b"" if text.endswith(b"\n") or not text else b"\n"
    plan.steps += make_parents(context.host, FSTAB)
    plan.steps.append(WriteFile(FSTAB, text + f"{line}\n".encode()))
    return True


def _persist(context: Context, journal: Journal, plan: Plan, asked: Reservation) -> None:
    if asked.value == PROC_VALUE:
        found = re.search(r"^\s*vm\.nr_hugepages\s*=\s*(\d+)", context.host.text(SYSCTL_FILE) or "", re.MULTILINE)
        if not found or int(found[1]) < asked.pages:
            write_whole(context.host, journal, plan, SYSCTL_FILE, f"vm.nr_hugepages = {asked.pages}")
        return
    # sysctl knows the default size on all nodes only; systemd-tmpfiles writes the others at the start.
    write_whole(context.host, journal, plan, TMPFILES_FILE, f"w {asked.value} - - - - {asked.pages}")
    if asked.size > 32 * pages.MIB:
        size = pages.show_size(asked.size)
        plan.notes.append(
            f"pages of {size} are surest to be had when the kernel starts: add to its command line"
            f" hugepagesz={size} hugepages={asked.pages}"
        )


def verify(context: Context, asked: Reservation) -> tuple[bool, list[str]]:
    """What the kernel gave: (all of it, the lines that say so and what helps)."""
    host = context.host
    pool = pages.pool(host, asked.size, asked.node)
    got = pool.total if pool else host.number(asked.value) or 0
    size = pages.show_size(asked.size)
    where = "" if asked.node is None else f" on node {asked.node}"
    lines = [f"HugePages_Total: {got}{where} ({size} each; asked for {asked.pages})"]
    if got >= asked.pages:
        if pool:
            lines.append(f"HugePages_Free: {pool.free}")
        return True, lines
    missing = (asked.pages - got) * asked.size
    available = pages.meminfo(host).get("MemAvailable", 0)
    if available > missing + missing // 4:
        lines += [
            f"the kernel gave {got} of {asked.pages}: {available >> 20} MiB are available, too fragmented for more"
            f" pages of {size}; this helps, then try again:",
            "  echo 3 | sudo tee /proc/sys/vm/drop_caches; echo 1 | sudo tee /proc/sys/vm/compact_memory",
            f"or reserve them when the kernel starts: hugepagesz={size} hugepages={asked.pages} on its command line",
        ]
    else:
        fits = (got * asked.size) >> 20
        lines += [
            f"the kernel gave {got} of {asked.pages}: memory is short ({available >> 20} MiB available,"
            f" {missing >> 20} MiB missing)",
            f"close other programs, or give the VM less memory: {got} pages hold {fits} MiB",
        ]
    return False, lines


def disable(context: Context, journal: Journal, wanted_size: int | None = None) -> Plan:
    """Take back what enable did; pages that kvmkit did not reserve are released too, as that is what is asked."""
    host = context.host
    entries = journal.of(TOPIC, "hugepages enable")
    plan = undo_entries(host, entries)
    plan.topic, plan.action = TOPIC, "hugepages disable"
    users = [process for process in context.vms if process.huge]
    if users and host.live:
        raise HostError(f"huge pages are in use by {', '.join(str(user) for user in users)}; stop them first")
    planned = {step.path for step in plan.steps if isinstance(step, SetValue)}
    if not planned:
        size = wanted_size or pages.default_size(host)
        pool = pages.pool(host, size)
        if pool is not None and pool.total:
            value = PROC_VALUE if size == pages.default_size(host) else f"{pool.directory}/nr_hugepages"
            plan.steps.append(SetValue(value, "0"))
    return plan
