"""CPUID as the guest sees it.

A KVM without VMX or SVM shows the host's feature bits whatever it is told, and our numbers all the same.
"""

from __future__ import annotations

import pytest
from microguest import MicroGuest


def cpuid(guest, leaf: int, subleaf: int = 0, **options) -> list[int]:
    code = (
        f"mov eax, {leaf:#x}\nmov ecx, {subleaf}\ncpuid\nmov esi, eax\nshow esi\nshow ebx\nshow ecx\nshow edx\nfinish"
    )
    machine: MicroGuest = guest(code, "real", **options)
    return machine.finish().shown


def test_baseline_shows_its_name_and_no_feature_above_its_level(guest, native):
    _, _, ecx, edx = cpuid(guest, 1, cpu="x86-64-v2")
    assert edx >> 26 & 1  # SSE2
    assert ecx >> 20 & 1  # SSE4.2
    assert not ecx >> 28 & 1  # AVX
    assert cpuid(guest, 7, cpu="x86-64-v2")[1] == 0
    brand = b"".join(word.to_bytes(4, "little") for word in cpuid(guest, 0x80000002, cpu="x86-64-v2"))
    assert brand == b"kvmkit x86-64-v2"


def test_feature_taken_away_is_not_shown(guest, native):
    assert cpuid(guest, 1, cpu="max")[2] >> 23 & 1  # POPCNT
    assert not cpuid(guest, 1, cpu="max,-popcnt")[2] >> 23 & 1


def test_hypervisor_bit_is_shown(guest):
    assert cpuid(guest, 1, cpu="max")[2] >> 31 & 1


def test_one_cpu_is_alone(guest):
    ebx = cpuid(guest, 1, cpu="max")[1]
    assert ebx >> 24 == 0
    assert ebx >> 16 & 0xFF <= 1


@pytest.mark.usefixtures("only_kvm")
def test_four_cpus_are_four_cores(guest):
    _, ebx, _, edx = cpuid(guest, 1, cpu="max", cpus=4)
    assert (ebx >> 16 & 0xFF, edx >> 28 & 1) == (4, 1)
    assert cpuid(guest, 0xB, 1, cpu="x86-64-v2", cpus=4)[:3] == [2, 4, 0x201]
