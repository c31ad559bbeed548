"""A Linux on kvm that can't go on: a clear line, status 1, no traceback."""

from __future__ import annotations

from .linux import kvmkit

ON_KVM = ("run", "--accel", "kvm")


def test_a_panic_is_one_line() -> None:
    ran = kvmkit(*ON_KVM, "--", "sh", "-c", "echo c > /proc/sysrq-trigger; sleep 60")
    last = ran.stderr.decode().splitlines()[-1]
    assert ran.returncode == 1
    assert last == "kvmkit: the guest's kernel panicked: sysrq triggered crash"
    assert b"Traceback" not in ran.stderr


def test_a_triple_fault_is_reported() -> None:
    """With reboot=t, Linux resets by a triple fault."""
    ran = kvmkit(*ON_KVM, "--append", "reboot=t", "--", "sh", "-c", "reboot -f; sleep 60")
    report = ran.stderr.decode()
    assert ran.returncode == 1, report
    assert "triple" in report.splitlines()[-1], report
    assert "Traceback" not in report
