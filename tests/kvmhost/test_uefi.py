"""UEFI on a real KVM."""

from __future__ import annotations

from .linux import kvmkit


def test_uefi_starts_a_kernel() -> None:
    """OVMF on the processor: its code a memory slot that is only read, its flash behind an exit for each write."""
    script = 'test -d /sys/firmware/efi && dmesg | grep -c "efi: EFI v2"'
    options = ("--accel", "kvm", "--net", "none", "--firmware", "uefi")
    ran = kvmkit("run", "tiny", *options, "--", "sh", "-c", script, timeout=110)
    assert (ran.returncode, ran.stdout) == (0, b"1\n"), ran.stderr
