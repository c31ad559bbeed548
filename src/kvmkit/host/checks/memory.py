"""Huge pages: sizes, counts, mount and who uses them; transparent ones; the limits on locked and huge memory."""

from __future__ import annotations

import re
from collections.abc import Iterator

from kvmkit.host import pages
from kvmkit.host.context import Context
from kvmkit.host.report import Row

GROUP = "Huge pages"
LIMITS = "Limits"


def rows(context: Context) -> Iterator[Row]:
    host = context.host
    default = pages.default_size(host)
    found = pages.pools(host)
    if not found:
        text = "this kernel has none, or a container hides them"
        yield Row("hugepages", GROUP, "huge pages", "note", text)
        return
    for pool in found:
        name = pages.show_size(pool.size)
        mark = " (default)" if pool.size == default else ""
        at_once = pages.unbroken(host, pool.size) if pool.total == 0 else None
        more = f"; {at_once} could be had at once" if at_once is not None else ""
        text = f"{pool.total} reserved, {pool.free} free{more}"
        if pool.reserved:
            text += f", {pool.reserved} of the free ones promised"
        if pool.surplus:
            text += f", {pool.surplus} surplus"
        enable = pool.total == 0 and pool.size == default
        fix = "sudo kvmkit host hugepages enable --memory 1G --persist" if enable else ""
        yield Row(f"hugepages.{name}", GROUP, f"{name} pages{mark}", "ok" if pool.total else "note", text, fix)
        for process in context.vms:
            held = dict(process.pages).get(pool.size, 0)
            if not process.pages and pool.size == default:  # of another user's: the sum alone is seen
                held = process.huge // pool.size
            if held:
                id = f"hugepages.vm.{process.pid}" + ("" if pool.size == default else f".{name}")
                yield Row(id, GROUP, f"  {process.name or process.command}", "note", f"uses {held} pages")
    yield from _mounts(context)
    enabled = host.value("/sys/kernel/mm/transparent_hugepage/enabled") or ""
    if chosen := re.search(r"\[(\w+)\]", enabled):
        means = {
            "always": "guest RAM gets them without asking",
            "madvise": "guest RAM gets them, as kvmkit asks for them",
            "never": "off: guest RAM is in 4 KiB pages unless reserved pages are used",
        }.get(chosen[1], "")
        fix = "echo madvise | sudo tee /sys/kernel/mm/transparent_hugepage/enabled" if chosen[1] == "never" else ""
        state = "note" if fix else "ok"
        yield Row("thp", GROUP, "transparent", state, f"{chosen[1]}: {means}", fix)  # type: ignore[arg-type] # a State
        for process in context.vms:
            if process.transparent:
                name, text = process.name or process.command, f"has {process.transparent >> 20} MiB on them"
                yield Row(f"thp.vm.{process.pid}", GROUP, f"  {name}", "note", text)


def _mounts(context: Context) -> Iterator[Row]:
    mounts = pages.mounts(context.host)
    kvm = context.groups.get("kvm")
    fix = "sudo kvmkit host hugepages enable --memory 1G --persist"
    if not mounts:
        there = "is not mounted" if context.host.exists(pages.MOUNT_POINT) else "is not there"
        text = f"{pages.MOUNT_POINT} {there}: only QEMU's -mem-path needs it, kvmkit does not"
        yield Row("hugepages.mount", GROUP, "mount", "note", text, fix)
    names = {gid: name for name, (gid, _) in context.groups.items()}
    for mount in mounts:
        group = names.get(mount.gid, str(mount.gid))
        size = f", {pages.show_size(mount.size)} pages" if mount.size else ""
        text = f"{mount.point}, mode {mount.mode}, group {group}{size}"
        id = "hugepages.mount" if mount.point == pages.MOUNT_POINT else f"hugepages.mount.{mount.point}"
        right = mount.mode in ("1770", "1777", "777", "770") and (kvm is None or mount.gid == kvm[0])
        if right or mount.point != pages.MOUNT_POINT:
            yield Row(id, GROUP, "mount", "ok", text)
        else:
            yield Row(id, GROUP, "mount", "note", f"{text}: members of kvm may not use it", fix)


def limit_rows(context: Context) -> Iterator[Row]:
    host = context.host
    text = host.text("/proc/self/limits") or ""
    if locked := re.search(r"^Max locked memory\s+(\S+)\s+(\S+)", text, re.MULTILINE):
        soft = locked[1]
        if soft.isdigit():
            means = f"{int(soft) // 1024:,} KiB: enough unless guest RAM is to be locked or a device passed through"
            yield Row("limits.memlock", LIMITS, "locked memory", "note", means, "ulimit -l unlimited    # as root")
        else:
            yield Row("limits.memlock", LIMITS, "locked memory", "ok", soft)
    else:
        yield Row("limits.memlock", LIMITS, "locked memory", "unknown", "no /proc/self/limits")
    if files := re.search(r"^Max open files\s+(\d+)", text, re.MULTILINE):
        few = int(files[1]) < 256
        text = f"{files[1]}{': too few for a VM with many devices' if few else ''}"
        yield Row("limits.files", LIMITS, "open files", "warn" if few else "ok", text, "ulimit -n 4096" if few else "")
    yield _hugetlb_limit(context)


def _hugetlb_limit(context: Context) -> Row:
    host = context.host
    own = {"": "/"}
    for line in (host.text("/proc/self/cgroup") or "").splitlines():
        _, _, rest = line.partition(":")
        controllers, _, path = rest.partition(":")
        for controller in controllers.split(","):
            own[controller] = path
    bases = [(f"/sys/fs/cgroup/hugetlb{own.get('hugetlb', '/')}", "limit_in_bytes")]
    bases += [(f"/sys/fs/cgroup{own['']}", "max"), (f"/sys/fs/cgroup/unified{own['']}", "max")]
    limits = []
    for base, ending in bases:
        for name in host.names(base):
            if found := re.fullmatch(rf"hugetlb\.(\w+B)\.{ending}", name):
                value = host.value(f"{base}/{name}") or "max"
                if value.isdigit() and int(value) < 1 << 60:
                    limits.append(f"{int(value) >> 20} MiB of {found[1]} pages")
        if limits:
            break
    if limits:
        return Row("limits.hugetlb", LIMITS, "hugetlb cgroup", "warn", f"at most {', '.join(limits)} for this group")
    return Row("limits.hugetlb", LIMITS, "hugetlb cgroup", "ok", "no limit")
