"""AMD's SVM on the software CPU: what a nested guest does and its hypervisor intercepts comes to the hypervisor."""

from __future__ import annotations

import struct

import pytest
from microguest import DATA

VMCB, HOST_SAVE, MAPS = DATA, DATA + 0x1000, DATA + 0x2000
NESTED = 0x7800
EXIT_CODE, EXIT_INFO_1, EXIT_INFO_2 = VMCB + 0x70, VMCB + 0x78, VMCB + 0x80
SHOW = "\n".join(f"mov eax, [{place:#x}]\nmov ebx, eax\nshow ebx" for place in (EXIT_CODE, EXIT_INFO_1, EXIT_INFO_2))
RUN = f"""
mov ecx, 0xc0000080
rdmsr
or eax, 0x1000
wrmsr
mov ecx, 0xc0010117
mov eax, {HOST_SAVE:#x}
xor edx, edx
wrmsr
mov eax, {VMCB:#x}
vmrun rax
{SHOW}
finish
"""
IOIO, MSR, HLT = 1 << 27, 1 << 28, 1 << 24


def exit_of(guest, nested: bytes, intercepts: int, maps: bytes = b"\xff" * 0x3000) -> list[int]:
    """Run real-mode code under VMRUN, every port and MSR intercepted by default; exit code and its two words."""
    machine = guest(RUN, "long")
    control = bytearray(0x1000)
    struct.pack_into("<II", control, 0xC, intercepts | HLT, 1)
    struct.pack_into("<QQ", control, 0x40, MAPS, MAPS)
    struct.pack_into("<I", control, 0x58, 1)  # ASID
    for place, attributes in ((0x400, 0x93), (0x410, 0x9B), (0x420, 0x93), (0x430, 0x93), (0x490, 0x8B)):
        struct.pack_into("<HHIQ", control, place, 0, attributes, 0xFFFF, 0)
    struct.pack_into("<I", control, 0x484, 0x3FF)  # IDTR's limit
    struct.pack_into("<Q", control, 0x4D0, 0x1000)  # EFER
    struct.pack_into("<Q", control, 0x558, 0x10)  # CR0
    struct.pack_into("<QQ", control, 0x560, 0x400, 0xFFFF0FF0)
    struct.pack_into("<QQ", control, 0x570, 2, NESTED)  # RFLAGS, RIP
    struct.pack_into("<Q", control, 0x5D8, 0x7000)
    machine.memory.write(VMCB, bytes(control))
    machine.memory.write(MAPS, maps)
    machine.memory.write(NESTED, nested)
    return machine.finish().shown


@pytest.fixture
def only_tcg(engine: str) -> None:
    if engine != "tcg":
        pytest.skip("tcg only: elsewhere the host decides whether a guest has SVM")


@pytest.mark.usefixtures("only_tcg")
@pytest.mark.parametrize(
    ("nested", "information"),
    [
        (b"\xe6\x80", 0x80 << 16 | 0x10),  # out 0x80, al
        (b"\xe5\x81", 0x81 << 16 | 0x21),  # in ax, 0x81
        (b"\x66\xef", 0x40),  # out dx, eax; dx is 0
        (b"\xf3\x26\x6e", 0x10 | 4 | 8 | 1 << 7),  # rep outsb from ES
    ],
    ids=["out8", "in16", "out32", "rep outsb"],
)
def test_port_instruction_is_intercepted(guest, nested, information):
    setup = b"\x31\xd2\xb9\x01\x00"  # xor dx, dx; mov cx, 1
    shown = exit_of(guest, setup + nested + b"\xf4", IOIO)
    assert shown == [0x7B, information, NESTED + len(setup + nested)]


@pytest.mark.usefixtures("only_tcg")
@pytest.mark.parametrize(("instruction", "write"), [(b"\x0f\x32", 0), (b"\x0f\x30", 1)], ids=["rdmsr", "wrmsr"])
def test_the_machine_s_own_msrs_are_intercepted(guest, instruction, write):
    apic_base = b"\x66\xb9\x1b\x00\x00\x00"  # mov ecx, 0x1b
    assert exit_of(guest, apic_base + instruction + b"\xf4", MSR)[:2] == [0x7C, write]


@pytest.mark.usefixtures("only_tcg")
def test_instruction_that_is_not_intercepted_runs(guest):
    assert exit_of(guest, b"\xe6\x80\xf4", 0)[0] == 0x78  # HLT


@pytest.mark.usefixtures("only_tcg")
def test_exit_after_a_software_interrupt_keeps_its_place(guest):
    """INT leaves a mark behind, by which the library would move RIP at the exit."""
    gate = b"\xc7\x06\x80\x00\x00\x79\xc7\x06\x82\x00\x00\x00"  # mov word ptr [0x80], 0x7900; [0x82], 0
    handler = b"\xc6\x06\x00\x79\xcf"  # mov byte ptr [0x7900], IRET
    code = gate + handler + b"\xcd\x20\xe6\x80\xf4"  # int 0x20; out 0x80, al; hlt
    assert exit_of(guest, code, IOIO)[2] == NESTED + len(code) - 1


@pytest.mark.usefixtures("only_tcg")
def test_port_that_the_map_leaves_out_is_not_intercepted(guest):
    maps = bytearray(0x3000)
    maps[0x81 // 8] = 1 << (0x81 & 7)
    code = b"\xe6\x80\xe6\x81\xf4"  # out 0x80, al; out 0x81, al; hlt
    assert exit_of(guest, code, IOIO, bytes(maps)) == [0x7B, 0x81 << 16 | 0x10, NESTED + 4]
