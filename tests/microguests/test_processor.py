"""What a processor checks and shows that a translator easily forgets: MSRs, control registers, CPUID that follows
them, and what INT1, PUSHF, INT and hypercalls do.
"""

from __future__ import annotations

import struct

import pytest
from microguest import DATA, IDT

from kvmkit.accel.structures import Sregs

NON_CANONICAL = 0x8000 << 32
POINTERS = {"LSTAR": 0xC0000082, "FS.base": 0xC0000100, "GS.base": 0xC0000101, "KernelGSbase": 0xC0000102}


def shown_trap(machine):
    vector, error, ip = machine.finish().shown[:3]
    return vector, error, ip - machine.symbols["here"]


def write_msr(msr: int, value: int) -> str:
    return f"mov ecx, {msr:#x}\nmov eax, {value & 0xFFFFFFFF:#x}\nmov edx, {value >> 32:#x}\nhere: wrmsr\n"


@pytest.mark.parametrize("msr", POINTERS.values(), ids=POINTERS)
def test_msr_that_holds_an_address_refuses_one_that_can_not_be(guest, native, msr):
    assert shown_trap(guest(write_msr(msr, NON_CANONICAL) + "finish", "long")) == (13, 0, 0)


@pytest.mark.parametrize("msr", POINTERS.values(), ids=POINTERS)
def test_msr_that_holds_an_address_takes_a_kernel_s(guest, native, msr):
    machine = guest(write_msr(msr, 0xFFFF800000001000) + "rdmsr\nshow edx\nfinish", "long")
    assert machine.finish().shown == [0xFFFF8000]


@pytest.mark.parametrize(
    ("msr", "value"),
    [(0x277, 0x0000000000000002), (0xC0000080, 1 << 40), (0x400, 0x1234), (0x401, 1)],
    ids=["PAT", "EFER", "MC0_CTL", "MC0_STATUS"],
)
def test_msr_refuses_reserved_values(guest, native, msr, value):
    assert shown_trap(guest(write_msr(msr, value) + "finish", "long")) == (13, 0, 0)


def test_cr4_refuses_what_the_cpu_lacks(guest, native):
    machine = guest("mov rax, cr4\nor eax, 1 << 20\nhere: mov cr4, rax\nfinish", "long", cpu="max,-smep")
    assert shown_trap(machine) == (13, 0, 0)


@pytest.mark.parametrize("value", [0x80000010, 0x20000011], ids=["paging alone", "NW without CD"])
def test_cr0_refuses_what_can_not_be(guest, native, value):
    machine = guest(f"mov eax, {value:#x}\nhere: mov cr0, eax\nfinish", "protected")
    assert shown_trap(machine) == (13, 0, 0)


def test_cpuid_osxsave_follows_cr4(guest, native):
    ask = "mov eax, 1\ncpuid\nshr ecx, 27\nand ecx, 1\nshow ecx\n"
    code = f"{ask}mov rax, cr4\nor eax, 1 << 18\nmov cr4, rax\n{ask}finish"
    assert guest(code, "long").finish().shown == [0, 1]


def test_cpuid_apic_follows_its_base(guest, native):
    ask = "mov eax, 1\ncpuid\nshr edx, 9\nand edx, 1\nshow edx\n"
    base = "mov ecx, 0x1b\nrdmsr\n"
    machine = guest(f"{ask}{base}and eax, ~0x800\nwrmsr\n{ask}{base}or eax, 0x800\nwrmsr\n{ask}finish", "long")
    assert machine.finish().shown == [1, 0, 1]


def test_cr8_is_the_task_priority(guest, native):
    tpr = "mov ebx, 0xfee00080\n"
    machine = guest(f"{tpr}mov eax, 9\nmov cr8, rax\nshow [rbx]\nmov dword ptr [rbx], 0x53\n"
                    "mov rcx, cr8\nshow ecx\nfinish", "long").finish()  # fmt: skip
    assert machine.shown == [0x90, 5]
    assert machine.sregs().cr8 == 5


def test_cr8_travels_in_the_state(guest):
    machine = guest("mov rcx, cr8\nshow ecx\nfinish", "long")
    sregs = machine.sregs()
    sregs.cr8 = 7
    machine.vcpu.set("sregs", bytes(sregs))
    assert Sregs.from_buffer_copy(machine.vcpu.get("sregs")).cr8 == 7


def test_int1_is_a_trap(guest, native):
    assert shown_trap(guest("here: .byte 0xf1\nfinish", "long")) == (1, 0, 1)


def test_int1_with_prefixes_is_a_trap_behind_all_of_it(guest, native):
    assert shown_trap(guest("here: .byte 0x2e, 0x2e, 0xf1\nfinish", "long")) == (1, 0, 3)


def test_fault_of_an_int_points_at_it(guest, native):
    machine = guest("here: int 0x80\nfinish", "long")
    gate = bytearray(machine.memory.read(IDT + 0x80 * 16, 16))
    struct.pack_into("<H", gate, 2, 0x38)  # a segment that is not there
    machine.memory.write(IDT + 0x80 * 16, gate)
    assert shown_trap(machine) == (13, 0x38, 0)


def test_pushf_shows_no_rf(guest, native):
    code = (
        "pushfd\nor dword ptr [esp], 0x10000\npush cs\npush offset here\niretd\nhere: pushfd\npop ebx\nshow ebx\nfinish"
    )
    assert not guest(code, "protected").finish().shown[0] & 0x10000


@pytest.mark.parametrize("instruction", ["vmcall", "vmmcall"])
def test_unknown_hypercall_is_answered(guest, native, instruction):
    machine = guest(f"mov eax, 99\nhere: {instruction}\nmov ebx, eax\nshow ebx\nfinish", "long")
    assert machine.finish().shown == [-1000 & 0xFFFFFFFF]


@pytest.mark.parametrize("instruction", ["vmcall", "vmmcall"])
def test_hypercall_of_a_program_is_refused(guest, native, instruction):
    machine = guest(f"mov eax, 99\n{instruction}\nmov ebx, eax\nshow ebx\nfinish", "ring3")
    assert machine.finish().shown == [-1 & 0xFFFFFFFF]


def test_kvm_clock_written_twice_goes_on(guest, native):
    """A second page continues the first: no reading of the host's clock may take the guest back."""
    register = f"mov ecx, 0x4b564d01\nmov eax, {DATA:#x} + 1\nxor edx, edx\nwrmsr\n"
    copy = (
        f"mov rsi, [{DATA:#x} + 8]\nmov [{DATA:#x} + 64], rsi\nmov rsi, [{DATA:#x} + 16]\nmov [{DATA:#x} + 72], rsi\n"
    )
    wait = "mov ecx, 3000000\n1: dec ecx\njnz 1b\n"
    machine = guest(f"{register}{copy}{wait}{register}finish", "long").finish()
    now = struct.unpack("<QQIb", machine.memory.read(DATA + 8, 21))
    tsc, base = struct.unpack("<QQ", machine.memory.read(DATA + 64, 16))
    shift, multiplier = now[3], now[2]
    ticks = now[0] - tsc
    ticks = ticks << shift if shift >= 0 else ticks >> -shift
    assert now[1] >= base + (ticks * multiplier >> 32) - 1


def test_tsc_can_be_set(guest, native):
    machine = guest(write_msr(0x10, 5 << 40) + "rdtsc\nshow edx\nmov ecx, 0x10\nrdmsr\nshow edx\nfinish", "long")
    assert [value >> 8 for value in machine.finish().shown] == [5, 5]
