"""The host's side of the page where KVM is real: modprobe, nesting on and off, doctor, -cpu host, a VM in a VM."""

from __future__ import annotations

import os
import sys
from collections.abc import Iterator
from pathlib import Path

import pytest

from .linux import Linux, kvmkit

NESTED = Path("/sys/module/kvm_amd/parameters/nested")


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


def test_doctors_whole_screen() -> None:
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
