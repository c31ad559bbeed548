"""The host's side of the page where KVM is real: modprobe, nesting on and off, doctor, -cpu host, a VM in a VM."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from .linux import Linux, kvmkit

NESTED = Path("/sys/module/kvm_amd/parameters/nested")
DISK = Path("/kvmkit/disk/linux.raw")
needs_disk = pytest.mark.skipif(not DISK.exists(), reason="no disk with a boot loader was pushed (syslinux, mtools)")


@pytest.fixture(autouse=True)
def as_it_was() -> Iterator[None]:
    yield
    kvmkit("host", "undo", "--all")
    assert NESTED.read_text().strip() in ("1", "Y")


def test_modprobe_kvm_amd() -> None:
    assert kvmkit("host", "modules", "disable").returncode == 0
    assert not NESTED.exists()
    dry = kvmkit("host", "modules", "enable", "--dry-run")
    done = kvmkit("host", "modules", "enable")
    assert done.returncode == 0, done.stderr
    assert done.stdout == dry.stdout, "what is printed beforehand is what is done"
    assert NESTED.exists()


def test_nested_off_and_on() -> None:
    file = Path("/etc/modprobe.d/kvm_amd.conf")
    assert kvmkit("host", "nested", "disable").returncode == 0
    assert NESTED.read_text().strip() in ("0", "N")
    done = kvmkit("host", "nested", "enable", "--persist")
    assert done.returncode == 0, done.stderr
    assert NESTED.read_text().strip() in ("1", "Y")
    assert file.read_text() == "options kvm_amd nested=1\n"
    assert kvmkit("host", "nested", "enable", "--persist").stdout.decode().strip() == "nesting is on already"
    assert kvmkit("host", "undo", "--all").returncode == 0
    assert not file.exists()


HOLD_A_VM = """
import fcntl, os, sys
device = os.open("/dev/kvm", os.O_RDWR)
vm = fcntl.ioctl(device, 0xAE01, 0)  # KVM_CREATE_VM
print("made", flush=True)
sys.stdin.read()
"""


def test_reload_is_refused_while_a_vm_runs_which_is_named() -> None:
    command = [sys.executable, "-c", HOLD_A_VM, "--name", "web"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as vm:
        assert vm.stdout is not None
        assert vm.stdout.readline() == b"made\n"
        for topic in ("nested", "modules"):
            done = kvmkit("host", topic, "disable")
            assert done.returncode == 1
            assert f"'web' (pid {vm.pid})".encode() in done.stderr
        assert NESTED.read_text().strip() in ("1", "Y")
        vm.communicate(b"")


def test_dmesg_after_a_failed_modprobe_kvm_intel() -> None:
    done = kvmkit("host", "modules", "enable", "--vendor", "intel")
    assert done.returncode == 1
    assert b"kvm_intel" in done.stderr
    assert done.stderr.count(b"\n") == 1


def test_doctors_whole_screen() -> None:
    """It says that VMs run accelerated, by its exit status as well; every group and row of the page is there."""
    told = json.loads(kvmkit("doctor", "--json").stdout)
    for _attempt in range(4):  # this host is itself on a software CPU, which a busy machine can keep from running
        if told["status"] == 0:
            break
        assert kvmkit("accel", "--fresh").returncode == 0
        told = json.loads(kvmkit("doctor", "--json").stdout)
    assert told["status"] == 0, [row for row in told["rows"] if row["id"].startswith("kvm.")]
    assert [row["id"] for row in told["rows"] if row["state"] == "fail"] == []
    assert all(row["text"] for row in told["rows"])
    done = kvmkit("doctor")
    assert (done.returncode, done.stderr) == (0, b"")
    text = done.stdout.decode()
    for group in ("Hardware", "Kernel", "/dev/kvm", "Virtio in this kernel", "Nesting", "Huge pages", "Limits", "User"):
        assert f"\n{group}\n" in f"\n{text}"
    for row in ("AMD-V (svm)", "kvm_amd", "million instructions/s", "on: a guest with --cpu host sees svm"):
        assert row in text
    assert text.endswith("VMs run accelerated by KVM here\n")


def test_cpu_host_has_svm_and_its_guest_runs_a_guest() -> None:
    """A guest of ours loads kvm_amd, and a VMM in it runs two instructions in a VM of its own. While it runs, the
    host's module is not to be reloaded, and whose VM it is that stands in the way is told."""
    sys.path.insert(0, str(Path(__file__).parents[1] / "microguests"))
    from nested import vmm

    program = vmm()
    with Linux(cpu="host") as guest:
        refused = kvmkit("host", "nested", "disable")
        assert refused.returncode == 1
        assert f"pid {os.getpid()}" in refused.stderr.decode()
        assert NESTED.read_text().strip() in ("1", "Y")
        assert guest.sh("grep -owm1 svm /proc/cpuinfo") == "svm\n"
        guest.sh("modprobe kvm_amd; test -c /dev/kvm")
        read, write = os.pipe()
        os.write(write, program)
        os.close(write)
        put = guest.client.run(["sh", "-c", "cat > /tmp/vmm; chmod +x /tmp/vmm"], stdin=read, timeout=30)
        os.close(read)
        assert put == 0
        ran = guest.run("/tmp/vmm", timeout=60)
        assert (ran.status, ran.out) == (0, "N from a guest of this guest\n")


def type_into(line: list[str], script: str, meanwhile: Callable[[], None] = lambda: None) -> str:
    """Run kvmkit with `line`, type `script` when the guest's shell asks for it, and return all that it said."""
    program = [sys.executable, "-m", "kvmkit", *line]
    with subprocess.Popen(program, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as guest:
        assert guest.stdin is not None
        assert guest.stdout is not None
        said = b""
        while b"\x1b[6n" not in said and (data := os.read(guest.stdout.fileno(), 4096)):
            said += data
        meanwhile()
        try:  # the shell asks where the cursor is, and takes what comes for the answer
            out, err = guest.communicate(f"\x1b[1;1R{script}; poweroff -f\n".encode(), timeout=60)
        finally:
            guest.kill()
    assert guest.returncode == 0, (said[-500:], err)
    return (said + out).decode(errors="replace")


@needs_disk
def test_qemu_enable_kvm_cpu_host() -> None:
    said = type_into(
        ["qemu", "-enable-kvm", "-cpu", "host", "-m", "256", "-hda", str(DISK)],
        "grep -E --color=auto 'vmx|svm' /proc/cpuinfo | wc -l; dmesg | grep 'Hypervisor detected'",
    )
    assert "SeaBIOS" in said
    assert "\n1\r\n" in said
    assert "Hypervisor detected: KVM" in said


@needs_disk
def test_qemu_enable_kvm_m_1024_mem_path_dev_hugepages_hda() -> None:
    """And while it runs: grep HugePages /proc/meminfo, and the same pages in `kvmkit stats`."""
    line = ["qemu", "-enable-kvm", "-m", "1024", "-mem-path", "/dev/hugepages", "-hda", str(DISK)]
    early = kvmkit(*line)
    assert early.returncode == 1
    assert b"kvmkit host hugepages enable" in early.stderr
    done = kvmkit("host", "hugepages", "enable", "--memory", "1G")
    assert done.returncode == 0, done.stderr
    assert pages() == {"Total": 550, "Free": 550, "Rsvd": 0, "Surp": 0}
    seen = []

    def look() -> None:
        seen.append(json.loads(kvmkit("stats", "--json").stdout))
        found = pages()
        assert found["Total"] == 550
        held = 550 - found["Free"]
        assert 0 < held < 512
        assert found["Rsvd"] == 512 - held
        assert [row["huge_pages"] for row in seen[0]] == [{"2M": held}]
        assert [row["engine"] for row in seen[0]] == ["kvm"]

    said = type_into(line, "head -n 1 /proc/meminfo", look)
    assert seen
    assert re.search(r"MemTotal: +(9|10)\d{5} kB", said)
    assert pages()["Free"] == 550


def pages() -> dict[str, int]:
    found = re.findall(r"^HugePages_(\w+): +(\d+)$", Path("/proc/meminfo").read_text(), re.MULTILINE)
    return {name: int(count) for name, count in found}
