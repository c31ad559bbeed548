"""Every command that the wiki page has its reader type, and what answers it here."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

from kvmkit.host import Host
from kvmkit.host.changes import hugepages, modules, nested
from kvmkit.host.context import Context
from kvmkit.host.doctor import examine
from kvmkit.host.inside import check
from kvmkit.host.journal import Journal
from kvmkit.host.kernel import loaded_modules
from kvmkit.host.pages import GIB, MIB, default_size, mounts, pool

Tree = Callable[[str], Path]


def shown(root: Path, change: str) -> list[str]:
    host = Host(root)
    context, journal = Context(host), Journal(host)
    if change == "nested":
        plan = nested.enable(context, journal, persist=True)
    else:
        plan = hugepages.enable(context, journal, hugepages.Wanted(GIB), persist=True)
    return [line.removeprefix("not for a tree of files: ") for line in plan.lines(host)]


def test_lscpu_grep_virtualization(tree: Tree) -> None:
    assert examine(Host(tree("intel"))).row("cpu.virtualization").text.startswith("VT-x")
    assert examine(Host(tree("amd"))).row("cpu.virtualization").text.startswith("AMD-V")


def test_grep_vmx_svm_0xc0f_proc_cpuinfo(tree: Tree) -> None:
    assert Context(Host(tree("intel"))).cpu.extension == "vmx"
    assert Context(Host(tree("amd"))).cpu.extension == "svm"
    assert Context(Host(tree("none"))).cpu.extension == ""
    root = tree("arm")
    (root / "proc/cpuinfo").write_text("processor\t: 0\nCPU implementer\t: 0x41\nCPU part\t: 0xc0f\n")
    assert Context(Host(root)).cpu.extension == "el2"


def test_zgrep_config_kvm_proc_config_gz(tree: Tree) -> None:
    config = Context(Host(tree("amd"))).config
    assert config.source == "/proc/config.gz"
    assert (config.option("CONFIG_KVM"), config.option("CONFIG_KVM_AMD")) == ("m", "m")
    assert Context(Host(tree("built-in"))).config.option("KVM_INTEL") == "y"
    assert Context(Host(tree("module-missing"))).config.option("KVM") == "missing"


def test_lsmod_grep_kvm(tree: Tree) -> None:
    found = loaded_modules(Host(tree("intel")))
    assert found["kvm"].used_by == ("kvm_intel",)
    assert found["kvm_intel"].users == 0


def test_dmesg_after_a_failed_modprobe(tree: Tree) -> None:
    assert "(BIOS)" in examine(Host(tree("bios-off"))).row("module.kvm_amd").text


def test_zgrep_virtio_proc_config_gz(tree: Tree) -> None:
    report = check(Host(tree("guest")))
    assert report.row("config.VIRTIO_NET").text == "m (network card)"
    assert report.row("config.VIRTIO_FS").text == "missing (shared directories)"


def test_lsmod_grep_virtio(tree: Tree) -> None:
    report = check(Host(tree("guest")))
    assert report.row("module.virtio_net").text == "loaded (network card)"
    assert report.row("module.virtio_blk").fix == "sudo modprobe virtio_blk"


def test_zgrep_virtio_without_a_configuration(tree: Tree) -> None:
    """Then modules tell: one that is there is m, a built-in one y, and one that is not there nothing where they are
    a selection."""
    root = tree("guest")
    host = Host(root)
    for config in (root / "proc/config.gz", *(root / "boot").glob("config-*")):
        config.unlink(missing_ok=True)
    modules = root / f"lib/modules/{host.release}"
    modules.mkdir(parents=True, exist_ok=True)
    (modules / "modules.dep").write_text("kernel/drivers/block/virtio_blk.ko:\n")
    (modules / "modules.builtin").write_text("kernel/drivers/virtio/virtio_mmio.ko\n")
    report = check(Host(root))
    assert report.row("config.VIRTIO_BLK").text == "m (disk)"
    assert report.row("config.VIRTIO_MMIO").text == "y (virtio devices without PCI)"
    assert report.row("config.VIRTIO_FS").text == "unknown (shared directories)"
    assert report.row("module.virtiofs").text == "not in this system's /lib/modules (shared directories)"
    (modules / "modules.order").write_text("kernel/drivers/block/virtio_blk.ko\n")
    assert check(Host(root)).row("config.VIRTIO_FS").text == "missing (shared directories)"


def test_modprobe_kvm_and_the_vendors_module(tree: Tree) -> None:
    root = tree("intel")
    (root / "proc/modules").write_text("")
    shutil.rmtree(root / "sys/module")
    context = Context(Host(root))
    lines = modules.enable(context, Journal(Host(root)), persist=False).lines(Host(root))
    assert [line.removeprefix("not for a tree of files: ") for line in lines] == ["# modprobe kvm_intel"]


def test_virtio_devices_are_bound(tree: Tree) -> None:
    report = check(Host(tree("guest")))
    assert report.row("device.virtio0").text == "network card: bound to virtio_net"
    assert report.row("device.virtio1").state == "fail"
    assert report.status == 1
    assert check(Host(tree("none"))).status == 2


def test_modprobe_r_kvm_intel_and_modprobe_kvm_intel_nested_1(tree: Tree) -> None:
    lines = shown(tree("intel"), "nested")
    assert lines.index("# modprobe -r kvm_intel") < lines.index("# modprobe kvm_intel nested=1")


def test_etc_modprobe_d_kvm_intel_conf(tree: Tree) -> None:
    lines = shown(tree("intel"), "nested")
    assert "+++ /etc/modprobe.d/kvm_intel.conf" in lines
    assert "+options kvm_intel nested=1" in lines


def test_cat_sys_module_kvm_intel_parameters_nested(tree: Tree) -> None:
    root = tree("intel")
    assert examine(Host(root)).row("nested").text == "off: guests can't use KVM themselves"
    (root / "sys/module/kvm_intel/parameters/nested").write_text("Y\n")
    assert examine(Host(root)).row("nested").state == "ok"
    assert nested.verify(Context(Host(root)), True) == "/sys/module/kvm_intel/parameters/nested: Y"


def test_etc_fstab_hugetlbfs(tree: Tree) -> None:
    lines = shown(tree("intel"), "hugepages")
    assert "# mkdir -m 0755 /dev/hugepages" in lines
    assert "+hugetlbfs /dev/hugepages hugetlbfs mode=01770,gid=106 0 0" in lines


def test_umount_and_mount_dev_hugepages(tree: Tree) -> None:
    root = tree("intel")
    (root / "dev/hugepages").mkdir()
    (root / "proc/self/mounts").write_text("hugetlbfs /dev/hugepages hugetlbfs rw,relatime,pagesize=2M 0 0\n")
    lines = shown(root, "hugepages")
    assert lines.index("# umount /dev/hugepages") < lines.index("# mount /dev/hugepages")


def test_mount_grep_huge(tree: Tree) -> None:
    [mount] = mounts(Host(tree("amd")))
    assert (mount.point, mount.mode, mount.gid, mount.size) == ("/dev/hugepages", "1770", 992, 2 * MIB)


def test_grep_hugepagesize_proc_meminfo(tree: Tree) -> None:
    assert default_size(Host(tree("intel"))) == 2 * MIB


def test_echo_550_proc_sys_vm_nr_hugepages(tree: Tree) -> None:
    assert "# echo 550 > /proc/sys/vm/nr_hugepages" in shown(tree("intel"), "hugepages")


def test_grep_hugepages_total_proc_meminfo(tree: Tree) -> None:
    context = Context(Host(tree("amd")))
    complete, lines = hugepages.verify(context, hugepages.reservation(context, hugepages.Wanted(GIB)))
    assert complete
    assert lines[0].startswith("HugePages_Total: 550")


def test_grep_hugepages_proc_meminfo_while_the_vm_runs(tree: Tree) -> None:
    found = pool(Host(tree("amd")), 2 * MIB)
    assert found is not None
    assert (found.total, found.free, found.reserved, found.surplus) == (550, 48, 6, 0)


def test_etc_sysctl_d_40_hugepage_conf(tree: Tree) -> None:
    lines = shown(tree("intel"), "hugepages")
    assert "+++ /etc/sysctl.d/40-hugepage.conf" in lines
    assert "+vm.nr_hugepages = 550" in lines


def test_install_edk2_ovmf(tree: Tree) -> None:
    root = tree("amd")
    assert any("Secure Boot" in row.text for row in examine(Host(root)).rows if row.id.startswith("ovmf."))
    for image in (root / "usr/share/edk2/x64").iterdir():
        image.unlink()
    assert examine(Host(root)).row("ovmf").fix == "sudo pacman -S edk2-ovmf"
