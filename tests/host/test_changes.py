"""What `kvmkit host` plans on recorded hosts, and that whatever it changes in a tree is undone byte for byte."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.errors import BadInput, HostError
from kvmkit.host import Host
from kvmkit.host.changes import hugepages, modules, nested, permissions, undo
from kvmkit.host.changes.hugepages import Wanted
from kvmkit.host.context import Context
from kvmkit.host.journal import Journal
from kvmkit.host.pages import GIB, MIB, pages_for, parse_size
from kvmkit.host.plan import Plan

Tree = Callable[[str], Path]
Snapshot = Callable[[Path], dict[str, tuple[int, bytes]]]
GIB1 = Wanted(GIB)


def commands(plan: Plan, root: Path) -> list[str]:
    """What the plan shows, without the mark of what a tree leaves out."""
    return [line.removeprefix("not for a tree of files: ") for line in plan.lines(Host(root))]


def do(plan: Plan, root: Path) -> list[str]:
    said: list[str] = []
    host = Host(root)
    plan.carry_out(host, Journal(host), said.append)
    return said


def fresh(root: Path) -> tuple[Context, Journal]:
    host = Host(root)
    return Context(host), Journal(host)


Change = Callable[[Path], Plan]
CHANGES: dict[str, tuple[str, Change]] = {
    "nested": ("intel", lambda root: nested.enable(*fresh(root), persist=True)),
    "hugepages": ("intel", lambda root: hugepages.enable(*fresh(root), GIB1, persist=True)),
    "hugepages-without-group": ("none", lambda root: hugepages.enable(*fresh(root), GIB1, persist=True)),
    "hugepages-1G": ("intel", lambda root: hugepages.enable(*fresh(root), Wanted(4 * GIB, GIB), persist=True)),
    "modules": ("intel", lambda root: modules.enable(*fresh(root), persist=True)),
    "modules-off": ("intel", lambda root: modules.disable(*fresh(root), persist=True)),
    "nested-off": ("amd", lambda root: nested_off(root)),
    "permissions": ("built-in", lambda root: permissions.enable(*fresh(root), persist=True, user="anna")),
}


def nested_off(root: Path) -> Plan:
    (root / "proc/4711/fd/11").unlink(missing_ok=True)
    (root / "proc/4711/fd/12").unlink(missing_ok=True)
    (root / "proc/modules").write_text("kvm_amd 208896 0 - Live 0x0\n")
    (root / "etc/modprobe.d/kvm_amd.conf").unlink(missing_ok=True)
    return nested.disable(*fresh(root), persist=True)


@pytest.mark.parametrize("name", CHANGES)
def test_dry_run_prints_what_is_then_done(tree: Tree, name: str) -> None:
    recorded, change = CHANGES[name]
    root = tree(recorded)
    printed = change(root).lines(Host(root))
    assert do(change(root), root) == printed


@pytest.mark.parametrize("name", CHANGES)
def test_planning_changes_nothing(tree: Tree, snapshot_of: Snapshot, name: str) -> None:
    recorded, change = CHANGES[name]
    root = tree(recorded)
    change(root)
    before = snapshot_of(root)
    change(root).lines(Host(root))
    assert snapshot_of(root) == before
    assert not (root / "var/lib/kvmkit").exists()


@pytest.mark.parametrize("name", CHANGES)
def test_undo_leaves_every_file_as_it_was(tree: Tree, snapshot_of: Snapshot, name: str) -> None:
    recorded, change = CHANGES[name]
    root = tree(recorded)
    plan = change(root)
    before = snapshot_of(root)
    do(plan, root)
    assert snapshot_of(root) != before
    taken_back = undo.undo(*fresh(root), everything=False)
    printed = taken_back.lines(Host(root))
    assert do(taken_back, root) == printed
    assert snapshot_of(root) == before
    assert Journal(Host(root)).entries == []


@pytest.mark.parametrize("name", CHANGES)
def test_a_second_time_changes_nothing(tree: Tree, snapshot_of: Snapshot, name: str) -> None:
    recorded, change = CHANGES[name]
    root = tree(recorded)
    do(change(root), root)
    after, entries = snapshot_of(root), len(Journal(Host(root)).entries)
    if not name.endswith("-off"):  # `disable` first takes back what the earlier one did
        do(change(root), root)
        assert snapshot_of(root) == after
        assert len(Journal(Host(root)).entries) == entries


def test_two_changes_are_undone_together_or_one_by_one(tree: Tree, snapshot_of: Snapshot) -> None:
    root = tree("intel")
    before = snapshot_of(root)
    do(hugepages.enable(*fresh(root), GIB1, persist=True), root)
    between = snapshot_of(root)
    do(hugepages.enable(*fresh(root), Wanted(2 * GIB), persist=True), root)
    assert (root / "etc/sysctl.d/40-hugepage.conf").read_text() == "vm.nr_hugepages = 1090\n"
    twice = snapshot_of(root)
    do(undo.undo(*fresh(root), everything=False), root)
    assert snapshot_of(root) == between
    do(hugepages.enable(*fresh(root), Wanted(2 * GIB), persist=True), root)
    assert snapshot_of(root) == twice
    do(hugepages.disable(*fresh(root)), root)
    assert snapshot_of(root) == before


def test_modes_and_links_survive(tree: Tree) -> None:
    root = tree("intel")
    (root / "etc/fstab").rename(root / "etc/fstab.real")
    (root / "etc/fstab.real").chmod(0o640)
    (root / "etc/fstab").symlink_to("fstab.real")
    do(hugepages.enable(*fresh(root), GIB1, persist=True), root)
    assert (root / "etc/fstab").is_symlink()
    assert "hugetlbfs /dev/hugepages" in (root / "etc/fstab.real").read_text()
    assert (root / "etc/fstab.real").stat().st_mode & 0o777 == 0o640


@pytest.mark.parametrize(
    ("path", "content", "name", "line"),
    [
        ("etc/modprobe.d/kvm_intel.conf", "options kvm_intel ept=0\n", "nested", "options kvm_intel nested=1"),
        ("etc/sysctl.d/40-hugepage.conf", "vm.nr_hugepages = 20\n", "hugepages", "vm.nr_hugepages = 550"),
        (
            "etc/fstab",
            "hugetlbfs /dev/hugepages hugetlbfs mode=1777 0 0\n",
            "hugepages",
            "hugetlbfs /dev/hugepages hugetlbfs mode=01770,gid=106 0 0",
        ),
        ("etc/modules-load.d/kvm.conf", "loop\n", "modules", "kvm_intel"),
        ("etc/modprobe.d/zz.conf", "options kvm_intel nested=0\n", "nested", "options kvm_intel nested=1"),
    ],
)
def test_a_file_of_the_users_is_shown_with_the_line_not_overwritten(
    tree: Tree, path: str, content: str, name: str, line: str
) -> None:
    root = tree("intel")
    (root / path).parent.mkdir(parents=True, exist_ok=True)
    (root / path).write_text(content)
    said = do(CHANGES[name][1](root), root)
    assert (root / path).read_text() == content
    assert f"  {line}" in said
    assert any(f"/{path}" in told and "not overwritten" in told for told in said)


def test_a_file_edited_after_the_change_is_left_alone_by_undo(tree: Tree) -> None:
    root = tree("intel")
    do(CHANGES["hugepages"][1](root), root)
    edited = (root / "etc/fstab").read_text() + "tmpfs /tmp tmpfs defaults 0 0\n"
    (root / "etc/fstab").write_text(edited)
    said = do(hugepages.disable(*fresh(root)), root)
    assert (root / "etc/fstab").read_text() == edited
    assert "  remove the line  hugetlbfs /dev/hugepages hugetlbfs mode=01770,gid=106 0 0" in said
    assert not (root / "etc/sysctl.d/40-hugepage.conf").exists()


def test_an_empty_line_at_the_end_of_fstab_is_kept_so(tree: Tree, snapshot_of: Snapshot) -> None:
    root = tree("intel")
    (root / "etc/fstab").write_text("proc /proc proc defaults 0 0")
    before = snapshot_of(root)
    do(CHANGES["hugepages"][1](root), root)
    assert (root / "etc/fstab").read_text().count("\n") == 2
    do(hugepages.disable(*fresh(root)), root)
    assert snapshot_of(root) == before


def test_a_damaged_journal_is_one_line(tree: Tree) -> None:
    root = tree("intel")
    (root / "var/lib/kvmkit").mkdir(parents=True)
    (root / "var/lib/kvmkit/host.json").write_text("{")
    with pytest.raises(HostError, match="is damaged"):
        Journal(Host(root))


def test_nested_reload_is_refused_while_a_vm_runs(tree: Tree) -> None:
    root = tree("amd")
    with pytest.raises(HostError, match=r"qemu-system-x86 'web' \(pid 4711\)"):
        nested.disable(*fresh(root), persist=False)


def test_nested_reload_is_refused_while_a_module_uses_it(tree: Tree) -> None:
    root = tree("intel")
    (root / "proc/modules").write_text("kvm_intel 380928 1 kvmgt, Live 0x0\n")
    with pytest.raises(HostError, match="modprobe -r kvmgt"):
        nested.enable(*fresh(root), persist=False)


def test_nested_reload_is_refused_for_vms_that_can_not_be_seen(tree: Tree) -> None:
    root = tree("intel")
    (root / "proc/modules").write_text("kvm_intel 380928 3 - Live 0x0\n")
    with pytest.raises(HostError, match="3 VMs"):
        nested.enable(*fresh(root), persist=False)


def test_nested_on_a_built_in_module_takes_the_command_line(tree: Tree) -> None:
    with pytest.raises(HostError, match=r"kvm_intel\.nested=1"):
        nested.enable(*fresh(tree("built-in")), persist=True)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("module-missing", "install a kernel with CONFIG_KVM"),
        ("arm", "part of the kernel"),
    ],
)
def test_modules_that_can_not_be_loaded_are_refused_with_the_reason(tree: Tree, name: str, reason: str) -> None:
    with pytest.raises(HostError, match=reason):
        modules.enable(*fresh(tree(name)), persist=False)


@pytest.mark.parametrize(
    ("name", "reason"),
    [
        ("bios-off", "switched off in the firmware"),
        ("none", "can't be used here"),
        ("guest", "hides VT-x"),
        ("modules-gone", "restart into the installed kernel"),
        ("container", "load it on its host"),
    ],
)
def test_why_modprobe_would_fail_in_words(tree: Tree, name: str, reason: str) -> None:
    context, _ = fresh(tree(name))
    with pytest.raises(HostError, match=reason):
        modules.refuse_to_load(context, modules.choose_module(context, None))


def test_the_pages_margin() -> None:
    assert pages_for(GIB, 2 * MIB) == 550
    assert pages_for(4 * GIB, GIB) == 4
    assert pages_for(4 * GIB + 1, GIB) == 5
    assert pages_for(1, 2 * MIB) == 10


@given(st.integers(1, 1 << 45), st.sampled_from([64 << 10, 2 * MIB, 32 * MIB, GIB]))
def test_pages_always_hold_the_memory(memory: int, size: int) -> None:
    pages = pages_for(memory, size)
    assert memory <= pages * size < memory + memory // 14 + 11 * size


@given(st.text(max_size=12))
def test_sizes_are_read_or_refused(text: str) -> None:
    try:
        size = parse_size(text, "--memory")
    except BadInput as refused:
        size, told = 1, str(refused)
        assert told.splitlines() == [told]
    assert size > 0


def test_sizes() -> None:
    assert parse_size("1G", "m") == parse_size("1024", "m") == parse_size("1024m", "m") == GIB
    for bad in ("", "0", "-1", "1.5G", "12X", "9" * 40, "99999T"):
        with pytest.raises(BadInput):
            parse_size(bad, "m")


def test_hugepages_of_a_size_the_kernel_lacks(tree: Tree) -> None:
    with pytest.raises(BadInput, match="2M, 1G"):
        hugepages.enable(*fresh(tree("intel")), Wanted(GIB, 4 * MIB), persist=False)


def test_hugepages_on_a_node(tree: Tree) -> None:
    root = tree("intel")
    plan = hugepages.enable(*fresh(root), Wanted(GIB, 2 * MIB, node=0), persist=True)
    value = "/sys/devices/system/node/node0/hugepages/hugepages-2048kB/nr_hugepages"
    assert f"# echo 550 > {value}" in commands(plan, root)
    assert f"+w {value} - - - - 550" in commands(plan, root)
    with pytest.raises(BadInput, match="NUMA nodes 0"):
        hugepages.enable(*fresh(root), Wanted(GIB, None, node=3), persist=False)


def test_hugepages_of_1g_get_a_mount_of_their_own(tree: Tree) -> None:
    root = tree("intel")
    shown = commands(CHANGES["hugepages-1G"][1](root), root)
    assert "+hugetlbfs /dev/hugepages1G hugetlbfs mode=01770,gid=106,pagesize=1G 0 0" in shown
    assert "# echo 4 > /sys/kernel/mm/hugepages/hugepages-1048576kB/nr_hugepages" in shown
    assert any("hugepagesz=1G hugepages=4" in line for line in shown)


def test_more_memory_than_the_host_has_is_refused(tree: Tree) -> None:
    with pytest.raises(HostError, match="ask for less memory"):
        hugepages.enable(*fresh(tree("intel")), Wanted(64 * GIB), persist=False)


@pytest.mark.parametrize(("available", "advice"), [(14_000_000, "too fragmented"), (100_000, "close other programs")])
def test_fewer_pages_than_asked_for(tree: Tree, available: int, advice: str) -> None:
    root = tree("intel")
    pool = root / "sys/kernel/mm/hugepages/hugepages-2048kB"
    (pool / "nr_hugepages").write_text("123\n")
    info = (root / "proc/meminfo").read_text().replace("14000000", str(available))
    (root / "proc/meminfo").write_text(info)
    context, _ = fresh(root)
    complete, lines = hugepages.verify(context, hugepages.reservation(context, GIB1))
    assert not complete
    assert lines[0] == "HugePages_Total: 123 (2M each; asked for 550)"
    assert advice in "\n".join(lines)


def test_hugepages_are_not_taken_away_by_a_smaller_wish(tree: Tree) -> None:
    root = tree("amd")
    shown = commands(hugepages.enable(*fresh(root), Wanted(64 * MIB), persist=False), root)
    assert not any("echo" in line for line in shown)


def test_permissions_for_a_user_who_is_not_there(tree: Tree) -> None:
    with pytest.raises(BadInput, match="no such user"):
        permissions.enable(*fresh(tree("intel")), persist=False, user="berta")


def test_permissions_udev_has_the_rule_already(tree: Tree) -> None:
    root = tree("intel")
    shown = commands(permissions.enable(*fresh(root), persist=True, user="anna"), root)
    assert "# usermod -aG kvm anna" in shown
    assert not any("rules.d" in line for line in shown)


def test_nothing_to_undo_is_said(tree: Tree) -> None:
    with pytest.raises(HostError, match="nothing to undo"):
        undo.undo(*fresh(tree("intel")), everything=True)


def test_where_nothing_is_to_be_done_the_journal_is_not_touched(tree: Tree, snapshot_of: Snapshot) -> None:
    """So that an ordinary user is told that there is nothing to do, too."""
    root = tree("built-in")
    before = snapshot_of(root)
    host = Host(root)
    context, journal = Context(host), Journal(host)
    for plan in (modules.enable(context, journal, persist=False), hugepages.disable(context, journal, None)):
        said: list[str] = []
        plan.carry_out(host, journal, said.append)
        assert said == plan.lines(host)
        assert said
    assert snapshot_of(root) == before


def test_switching_off_twice_keeps_it_off(tree: Tree) -> None:
    root = tree("amd")
    do(nested_off(root), root)
    (root / "sys/module/kvm_amd/parameters/nested").write_text("0\n")
    again = nested.disable(*fresh(root), persist=True)
    assert again.lines(Host(root)) == ["nesting is off already"]
    assert (root / "etc/modprobe.d/kvm_amd.conf").read_text() == "options kvm_amd nested=0\n"
    back = commands(nested.enable(*fresh(root), persist=True), root)
    assert "# modprobe kvm_amd nested=1" in back
    assert "+options kvm_amd nested=1" in back


def test_modules_on_again_takes_the_blacklist_away(tree: Tree) -> None:
    root = tree("intel")
    do(modules.disable(*fresh(root), persist=True), root)
    assert (root / "etc/modprobe.d/kvm_blacklist.conf").read_text() == "blacklist kvm_intel\n"
    do(modules.enable(*fresh(root), persist=False), root)
    assert not (root / "etc/modprobe.d/kvm_blacklist.conf").exists()


def test_two_at_once_do_not_lose_each_others_journal(tree: Tree) -> None:
    root = tree("intel")
    first, second = Journal(Host(root)), Journal(Host(root))
    plan = modules.enable(Context(Host(root)), first, persist=True)
    do(hugepages.enable(*fresh(root), GIB1, persist=True), root)
    with pytest.raises(HostError, match="changed this host just now"):
        plan.carry_out(Host(root), second, lambda line: None)
    with Journal(Host(root)).locked(), pytest.raises(HostError, match="try again when it is done"):
        plan.carry_out(Host(root), Journal(Host(root)), lambda line: None)
