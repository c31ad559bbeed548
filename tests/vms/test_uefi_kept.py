"""A kept VM that UEFI starts: what its firmware remembers is the VM's, for as long as there is one."""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from tests.secureboot.efi import CODE, REFUSED, RESET, STARTED, efi_disk, program

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(not CODE.exists(), reason=f"{CODE} is not there: the package ovmf is not installed"),
]


def says(kvmkit, name: str, text: str, seconds: float = 60) -> None:
    """Wait until its console has it."""
    end = time.monotonic() + seconds
    while text not in kvmkit("logs", name).stdout:
        assert time.monotonic() < end, kvmkit("logs", name).stdout
        time.sleep(0.2)


def secure(kvmkit, name: str) -> bool:
    return bool(json.loads(kvmkit("secureboot", "status", name, "--json").stdout)["secure_boot"])


def test_a_renamed_vm_finds_its_variables_when_its_guest_resets(kvmkit, home: Path, tmp_path: Path) -> None:
    disk = efi_disk(tmp_path / "a.raw", {"EFI/BOOT/BOOTX64.EFI": program(then=RESET)})
    words = ("--firmware", "uefi", "--disk", str(disk), "--accel", "tcg", "--memory", "128M")
    assert kvmkit("create", "--name", "first", *words).returncode == 0
    assert kvmkit("start", "first").returncode == 0
    says(kvmkit, "first", STARTED)
    assert kvmkit("rename", "first", "second").returncode == 0
    seen = kvmkit("logs", "second").stdout.count(STARTED)
    end = time.monotonic() + 60
    while kvmkit("logs", "second").stdout.count(STARTED) < seen + 2:
        assert time.monotonic() < end, kvmkit("ps", "-a").stdout
        time.sleep(0.2)
    assert kvmkit("rm", "-f", "second").returncode == 0


def test_keys_are_enrolled_between_two_starts(kvmkit, home: Path, tmp_path: Path) -> None:
    disk = efi_disk(tmp_path / "a.raw", {"EFI/BOOT/BOOTX64.EFI": program()})
    words = ("--firmware", "uefi", "--disk", str(disk), "--accel", "tcg", "--memory", "128M")
    assert kvmkit("create", "--name", "efi", *words).returncode == 0
    assert kvmkit("start", "efi").returncode == 0
    says(kvmkit, "efi", STARTED)
    nvram = home / "data" / "machines" / "efi" / "nvram.fd"
    assert "BootOrder".encode("utf-16-le") in nvram.read_bytes()
    refused = kvmkit("secureboot", "enroll", "efi")
    assert (refused.returncode, refused.stderr.count("\n")) == (1, 1)
    assert "stop it first" in refused.stderr
    assert kvmkit("kill", "efi").returncode == 0
    assert not secure(kvmkit, "efi")
    assert kvmkit("secureboot", "enroll", "efi").returncode == 0
    assert secure(kvmkit, "efi")
    assert kvmkit("rename", "efi", "efi2").returncode == 0
    assert kvmkit("start", "efi2").returncode == 0
    says(kvmkit, "efi2", REFUSED)
    assert kvmkit("kill", "efi2").returncode == 0
    assert secure(kvmkit, "efi2")
    assert kvmkit("rm", "efi2").returncode == 0
    assert not nvram.parent.with_name("efi2").exists()
