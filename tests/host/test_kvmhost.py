"""`kvmkit host` where modprobe and /dev/kvm are real: inside the KVM test host (AMD's SVM, kvm_amd as a module)."""

from __future__ import annotations

import fcntl
import json
import os
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.kvmhost,
    pytest.mark.skipif("KVMKIT_KVMHOST" not in os.environ, reason="runs inside the KVM test host"),
]

Run = Callable[..., subprocess.CompletedProcess[str]]
PARAMETER = Path("/sys/module/kvm_amd/parameters/nested")
CONF = Path("/etc/modprobe.d/kvm_amd.conf")
KVM_CREATE_VM = 0xAE01  # _IO(KVMIO, 0x01), linux/kvm.h


@pytest.fixture(autouse=True)
def loaded() -> Iterator[None]:
    """Starts and ends with kvm_amd loaded by its defaults, and nothing of ours in the journal."""
    yield
    subprocess.run(["rm", "-rf", "/var/lib/kvmkit", str(CONF), "/etc/modules-load.d/kvm.conf"], check=True)
    subprocess.run(["modprobe", "-r", "kvm_amd"], check=False)
    subprocess.run(["modprobe", "kvm_amd"], check=True)


def nested() -> bool:
    return PARAMETER.read_text().strip() in ("1", "Y")


def test_doctor_finds_it_accelerated(kvmkit: Run) -> None:
    done = kvmkit("doctor", "--json")
    rows = {row["id"]: row for row in json.loads(done.stdout)["rows"]}
    # A loaded machine can make this host, itself on a software CPU, too slow for KVM to count as fast.
    assert done.returncode == (0 if rows["kvm.speed"]["state"] == "ok" else 1)
    assert rows["cpu.virtualization"]["text"] == "AMD-V (svm)"
    assert rows["nested"]["state"] == "ok"
    assert "million instructions/s" in rows["kvm.speed"]["text"]
    assert [id for id, row in rows.items() if row["state"] == "fail" and id != "tcg"] == []


def test_modprobe(kvmkit: Run) -> None:
    subprocess.run(["modprobe", "-r", "kvm_amd"], check=True)
    assert not PARAMETER.exists()
    done = kvmkit("host", "modules", "enable", "--persist")
    assert (done.returncode, done.stderr) == (0, "")
    assert PARAMETER.exists()
    undone = kvmkit("host", "modules", "disable")
    assert (undone.returncode, undone.stderr) == (0, "")
    assert not PARAMETER.exists()
    assert not Path("/etc/modules-load.d/kvm.conf").exists()


def test_nested_off_and_on(kvmkit: Run) -> None:
    assert nested()  # kvm_amd's default
    done = kvmkit("host", "nested", "disable", "--persist")
    assert (done.returncode, done.stderr) == (0, "")
    assert not nested()
    assert CONF.read_text() == "options kvm_amd nested=0\n"
    dry = kvmkit("host", "nested", "enable", "--persist", "--dry-run")
    done = kvmkit("host", "nested", "enable", "--persist")
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout == f"{dry.stdout}{PARAMETER}: {PARAMETER.read_text()}"
    assert nested()
    assert CONF.read_text() == "options kvm_amd nested=1\n"
    undone = kvmkit("host", "undo", "--all")
    assert (undone.returncode, undone.stderr) == (0, "")
    assert nested()
    assert not CONF.exists()


def test_reload_is_refused_while_a_vm_runs(kvmkit: Run) -> None:
    device = os.open("/dev/kvm", os.O_RDWR)
    vm = fcntl.ioctl(device, KVM_CREATE_VM, 0)
    try:
        for words in (("nested", "disable"), ("modules", "disable")):
            done = kvmkit("host", *words)
            assert done.returncode == 1
            assert f"(pid {os.getpid()})" in done.stderr
        assert nested()
    finally:
        os.close(vm)
        os.close(device)


def test_a_module_that_fails_to_load_is_explained(kvmkit: Run) -> None:
    done = kvmkit("host", "modules", "enable", "--vendor", "intel")
    assert done.returncode == 1
    assert "kvm_intel" in done.stderr
    assert done.stderr.count("\n") == 1
