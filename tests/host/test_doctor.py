"""`kvmkit doctor` on recorded hosts: each row says what it means and the command that mends it."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from collections.abc import Callable
from io import StringIO
from pathlib import Path

import pytest

from kvmkit.host import Host, Speed
from kvmkit.host.checks import device
from kvmkit.host.context import Context
from kvmkit.host.doctor import examine
from kvmkit.host.report import Report

Tree = Callable[[str], Path]
TREES = sorted(path.stem for path in (Path(__file__).parent / "trees").glob("*.tree"))


@pytest.mark.parametrize("name", TREES)
def test_every_recorded_host_is_examined_to_the_end(tree: Tree, name: str) -> None:
    report = examine(Host(tree(name)))
    groups = {row.group for row in report.rows}
    assert {"Hardware", "Kernel", "/dev/kvm", "Nesting", "Huge pages", "Limits", "Firmware", "Programs"} <= groups
    assert len({row.id for row in report.rows}) == len(report.rows)
    assert report.status in (0, 1)


def test_an_empty_tree_gives_rows_and_not_an_error(tmp_path: Path) -> None:
    report = examine(Host(tmp_path))
    assert report.status == 1
    assert report.row("kvm.device").state == "fail"
    assert report.row("kernel.config").state == "unknown"
    assert report.row("limits.memlock").state == "unknown"


def test_without_a_software_cpu_nothing_runs_where_kvm_does_not(tree: Tree) -> None:
    assert examine(Host(tree("none")), software="not installed").status == 2
    assert examine(Host(tree("amd")), software="not installed").status == 0


def test_intel(tree: Tree) -> None:
    report = examine(Host(tree("intel")))
    assert "VT-x (vmx)" in report.row("cpu.virtualization").text
    assert report.row("config.KVM").text == "m: a module"
    assert report.row("config.KVM_INTEL").state == "ok"
    assert report.row("module.kvm_intel").text == "loaded"
    assert report.row("nested").fix == "sudo kvmkit host nested enable --persist"
    assert report.row("iommu").text.startswith("on, 2 groups")
    assert "Secure Boot, keys enrolled, needs SMM" in report.row("ovmf.0").text
    assert report.row("tool.passt").fix == "sudo apt-get install passt"
    assert report.row("virtio.SCSI_VIRTIO").state == "ok"
    assert "VIRTIO_FS" in report.row("virtio.missing").text
    assert report.row("vhost.vhost_net").fix == "sudo modprobe vhost_net"


@pytest.mark.skipif(os.geteuid() != 0, reason="the tree's /dev/kvm gets its group by chown: needs root")
def test_whoever_is_not_in_the_group_may_not_open_it(tree: Tree) -> None:
    report = examine(Host(tree("intel")))
    assert report.row("kvm.permission").fix == "sudo usermod -aG kvm $USER    # then log in again"
    assert report.status == 1
    assert "permission" in report.verdict


def test_amd_with_reserved_pages_and_a_vm_that_uses_them(tree: Tree) -> None:
    report = examine(Host(tree("amd")))
    assert report.status == 0
    assert report.row("hugepages.2M").text == "550 reserved, 48 free, 6 of the free ones promised"
    assert report.row("hugepages.vm.4711").text == "uses 502 pages"
    assert report.row("hugepages.vm.4711").name.strip() == "web"
    assert "mode 1770, group kvm" in report.row("hugepages.mount").text
    assert report.row("hugepages.mount").state == "ok"
    assert report.row("nested").state == "ok"
    assert report.row("nested.persistent").text == "on by /etc/modprobe.d/kvm_amd.conf"
    assert report.row("tool.qemu-img").fix == "sudo pacman -S qemu-img"


def test_pages_of_each_size_that_a_vm_uses(tree: Tree) -> None:
    """Documentation/filesystems/proc.rst: an area's page size, and what of it is there."""
    root = tree("amd")
    area = (
        "7f0000000000-7f0100000000 rw-s 00000000 00:01 1 /x\nSize: 4 kB\nKernelPageSize: {} kB\nAnonHugePages: {} kB\n"
    )
    (root / "proc/4711/smaps").write_text(
        area.format(4, 6144)
        + area.format(2048, 0) + "Shared_Hugetlb:     4096 kB\nPrivate_Hugetlb:     2048 kB\n"
        + area.format(1048576, 0) + "Shared_Hugetlb: 3145728 kB\nPrivate_Hugetlb: 0 kB\n"
    )  # fmt: skip
    (root / "sys/kernel/mm/hugepages/hugepages-1048576kB").mkdir(parents=True, exist_ok=True)
    (root / "sys/kernel/mm/transparent_hugepage").mkdir(parents=True, exist_ok=True)
    (root / "sys/kernel/mm/transparent_hugepage/enabled").write_text("always [madvise] never\n")
    report = examine(Host(root), names={4711: "db"})
    assert report.row("hugepages.vm.4711").text == "uses 3 pages"
    assert report.row("hugepages.vm.4711.1G").text == "uses 3 pages"
    assert report.row("thp.vm.4711").text == "has 6 MiB on them"
    assert report.row("thp.vm.4711").name.strip() == "db"


def test_a_processor_without_virtualization(tree: Tree) -> None:
    report = examine(Host(tree("none")))
    row = report.row("cpu.virtualization")
    assert (row.state, row.fix) == ("fail", "")
    assert "can't be used" in row.text
    assert report.status == 1


@pytest.mark.parametrize("name", ["bios-off", "bios-off-cleared"])
def test_bios_off(tree: Tree, name: str) -> None:
    report = examine(Host(tree(name)))
    assert report.status == 1
    module = "kvm_amd" if name == "bios-off" else "kvm_intel"
    assert "switched off in the firmware" in report.row(f"module.{module}").text
    if name == "bios-off-cleared":
        assert "BIOS" in report.row("cpu.virtualization").text
        assert "firmware-setup" in report.row("cpu.virtualization").fix


def test_no_log_to_read_is_said(tree: Tree) -> None:
    root = tree("none")
    (root / "var/log/dmesg").unlink()
    row = examine(Host(root)).row("cpu.virtualization")
    assert "may not be read" in row.text
    assert row.fix.startswith("sudo dmesg")


def test_container(tree: Tree) -> None:
    report = examine(Host(tree("container")))
    assert report.row("container").text.startswith("docker")
    assert report.row("kvm.device").fix == "docker run --device /dev/kvm ..."
    assert report.row("kernel.config").state == "unknown"
    assert report.row("hugepages").state == "note"
    assert report.row("tool.passt").fix == "sudo apk add passt"


def test_modules_built_in(tree: Tree) -> None:
    report = examine(Host(tree("built-in")))
    assert report.row("config.KVM_INTEL").text == "y: built in"
    assert report.row("module.kvm_intel").text == "built into the kernel"
    assert report.row("group.kvm").fix == "sudo kvmkit host permissions enable --persist"


def test_module_missing(tree: Tree) -> None:
    report = examine(Host(tree("module-missing")))
    assert report.row("config.KVM").state == "fail"
    assert report.row("module.kvm").text.startswith("missing")
    assert report.status == 1


def test_modules_gone_after_an_upgrade(tree: Tree) -> None:
    row = examine(Host(tree("modules-gone"))).row("module.kvm_amd")
    assert row.fix == "systemctl reboot"


def test_hidden_by_a_hypervisor(tree: Tree) -> None:
    row = examine(Host(tree("guest"))).row("cpu.virtualization")
    assert "its hypervisor (QEMU) hides VT-x" in row.text
    assert "-cpu host" in row.fix


def test_arm(tree: Tree) -> None:
    report = examine(Host(tree("arm")))
    assert report.status == 1
    assert "runs on tcg" in report.row("cpu.virtualization").text
    assert "config.KVM_INTEL" not in {row.id for row in report.rows}


def test_a_slow_dev_kvm_is_no_acceleration(monkeypatch: pytest.MonkeyPatch) -> None:
    if not os.access("/dev/kvm", os.R_OK | os.W_OK):
        pytest.skip("needs a /dev/kvm that may be opened")
    slow = examine(Host("/"), Speed(useful=False, ring0=1.6e6, exit=27_000))
    assert slow.status == 1
    assert "1.6 million" in slow.row("kvm.speed").text
    assert "27.0 us" in slow.row("kvm.speed").text
    assert examine(Host("/"), Speed(useful=True, ring0=3e9, exit=900)).status == 0


def test_dev_kvm_that_is_no_device(tree: Tree) -> None:
    root = tree("amd")
    (root / "dev/kvm").unlink()
    rows = list(device.rows(Context(Host(root)), None))
    assert [row.state for row in rows] == ["fail"]


def test_a_damaged_configuration_is_passed_over(tree: Tree) -> None:
    root = tree("amd")
    (root / "proc/config.gz").write_bytes(b"\x1f\x8b\x08\x00garbage")
    assert examine(Host(root)).row("kernel.config").state == "unknown"


def test_links_do_not_lead_out_of_a_tree(tmp_path: Path) -> None:
    (tmp_path / "etc").mkdir()
    (tmp_path / "etc/group").symlink_to("/etc/passwd")
    (tmp_path / "a").symlink_to("b")
    (tmp_path / "b").symlink_to("a")
    host = Host(tmp_path)
    assert host.text("/etc/group") is None
    assert host.path("/etc/group") == tmp_path / "etc/passwd"
    assert host.text("/a/b/c") is None
    assert host.path("/../../etc/x") == tmp_path / "etc/x"


class Terminal(StringIO):
    def isatty(self) -> bool:
        return True


def test_plain_in_a_pipe_and_coloured_on_a_terminal(tree: Tree, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TERM", "xterm-256color")
    monkeypatch.delenv("NO_COLOR", raising=False)
    report = examine(Host(tree("none")))
    pipe, terminal = StringIO(), Terminal()
    report.show(pipe)
    report.show(terminal)
    assert "\x1b" not in pipe.getvalue()
    assert "\x1b[" in terminal.getvalue()
    assert "FAIL" in pipe.getvalue()


def test_json_has_every_row(tree: Tree) -> None:
    report: Report = examine(Host(tree("intel")))
    told = json.loads(report.as_json())
    assert told["status"] == report.status
    assert [row["id"] for row in told["rows"]] == [row.id for row in report.rows]


def test_nothing_of_kvmkit_but_the_bottom_row_is_imported() -> None:
    code = (
        "import sys, kvmkit.host.doctor, kvmkit.host.inside, kvmkit.host.plan;"
        "print(sorted(m for m in sys.modules if m.startswith('kvmkit.') and not m.startswith('kvmkit.host')))"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "['kvmkit.errors', 'kvmkit.firmware', 'kvmkit.packages']"
