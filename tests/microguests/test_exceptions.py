"""Exceptions: vector, error code, where the saved instruction pointer points, CR2, and what comes of a bad IDT."""

from __future__ import annotations

import struct

import pytest
from microguest import CODE64, DATA, DATA_SEGMENT, GDT, IDT, STACK, USER_CODE

from kvmkit.accel import ExitReason

MODES = ["real", "protected", "long"]
UNMAPPED = 0x123456789000


def shown_trap(machine):
    vector, error, ip, cs = machine.finish().shown[:4]
    return vector, error, ip - machine.symbols["here"], cs


@pytest.mark.parametrize("mode", MODES)
def test_divide_error_points_at_the_division(guest, mode):
    machine = guest("xor edx, edx\nxor ecx, ecx\nhere: div ecx\nfinish", mode)
    assert shown_trap(machine)[:3] == (0, 0, 0)


def test_divide_error_in_ring_3(guest):
    machine = guest("xor edx, edx\nxor ecx, ecx\nhere: div ecx\nfinish", "ring3")
    assert shown_trap(machine) == (0, 0, 0, USER_CODE)


@pytest.mark.parametrize("mode", [*MODES, "ring3"])
def test_invalid_opcode_points_at_it(guest, mode):
    assert shown_trap(guest("here: ud2\nfinish", mode))[:3] == (6, 0, 0)


@pytest.mark.parametrize("mode", MODES)
def test_breakpoint_points_behind_it(guest, native, mode):
    assert shown_trap(guest("here: int3\nfinish", mode))[:3] == (3, 0, 1)


def test_breakpoint_in_ring_3(guest):
    assert shown_trap(guest("here: int3\nfinish", "ring3")) == (3, 0, 1, USER_CODE)


@pytest.mark.parametrize("mode", MODES)
def test_software_interrupt_points_behind_it(guest, native, mode):
    assert shown_trap(guest("here: int 0x80\nfinish", mode))[:3] == (0x80, 0, 2)


def test_software_interrupt_from_ring_3_needs_a_gate_for_it(guest, native):
    vector, error, offset, _ = shown_trap(guest("here: int 0x80\nfinish", "ring3"))
    assert (vector, error, offset) == (13, 0x80 << 3 | 2, 0)


def test_general_protection_in_real_mode_has_no_error_code(guest):
    machine = guest("mov ebx, 0xfffe\nhere: mov eax, [bx]\nfinish", "real")
    assert shown_trap(machine)[:3] == (13, 0, 0)


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_general_protection_names_the_selector(guest, mode):
    machine = guest("mov ax, 0x1234\nhere: mov ds, ax\nfinish", mode)
    assert shown_trap(machine)[:3] == (13, 0x1234, 0)


def test_segment_not_present_names_the_selector(guest):
    machine = guest("mov ax, 0x38\nhere: mov ds, ax\nfinish", "long")
    machine.memory.write(GDT + 0x38, struct.pack("<Q", 0x00CF13000000FFFF))
    assert shown_trap(machine)[:3] == (11, 0x38, 0)


@pytest.mark.parametrize(("mode", "user"), [("long", 0), ("ring3", 4)])
@pytest.mark.parametrize(("access", "write"), [("mov eax, [rbx]", 0), ("mov [rbx], eax", 2)])
def test_page_fault_tells_address_and_access(guest, mode, user, access, write):
    machine = guest(f"mov rbx, {UNMAPPED:#x}\nhere: {access}\nfinish", mode)
    assert shown_trap(machine)[:3] == (14, user | write, 0)
    assert machine.shown[5] == UNMAPPED & 0xFFFFFFFF
    assert machine.sregs().cr2 == UNMAPPED


def test_non_canonical_address_is_a_general_protection_fault(guest):
    machine = guest("mov rbx, 0x8000000000000000\nhere: mov eax, [rbx]\nfinish", "ring3")
    assert shown_trap(machine)[:3] == (13, 0, 0)


def test_privileged_instruction_in_ring_3(guest):
    assert shown_trap(guest("here: hlt\nfinish", "ring3")) == (13, 0, 0, USER_CODE)


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_gate_that_is_not_present(guest, native, mode):
    machine = guest("here: ud2\nfinish", mode)
    _absent_gate(machine, mode, 6)
    vector, error, offset, _ = shown_trap(machine)
    # Bit 0 (the event was external) is set by processors for an exception too; QEMU's software CPU leaves it clear.
    assert (vector, error & ~1, offset) == (11, 6 << 3 | 2, 0)


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_fault_in_the_delivery_of_a_fault_is_a_double_fault(guest, mode):
    machine = guest("mov ax, 0x1234\nhere: mov ds, ax\nfinish", mode)
    _absent_gate(machine, mode, 13)
    vector, error, *_ = shown_trap(machine)
    assert (vector, error) == (8, 0)


@pytest.mark.parametrize("mode", ["protected", "long"])
def test_no_idt_at_all_is_a_triple_fault(guest, mode):
    machine = guest("here: ud2\nfinish", mode)
    sregs = machine.sregs()
    sregs.idt.limit = 0
    machine.vcpu.set("sregs", bytes(sregs))
    assert machine.run().reason == ExitReason.SHUTDOWN
    assert not machine.finished.is_set()


def test_exception_can_be_returned_from(guest):
    code = f"""
    here: ud2
    mov ebx, 77
    show ebx
    finish
    vector_6:
    add qword ptr [rsp], 2
    mov ecx, [rsp + 24]
    mov [{DATA}], ecx
    iretq
    """
    machine = guest(code, "long").finish()
    assert machine.shown == [77]
    assert int.from_bytes(machine.memory.read(DATA, 4), "little") == STACK


def test_interrupt_stack_table_is_used(guest):
    machine = guest("here: ud2\nfinish\nvector_6:\nmov ebx, esp\nshow ebx\nfinish", "long")
    gate = bytearray(machine.memory.read(IDT + 6 * 16, 16))
    gate[4] = 1
    machine.memory.write(IDT + 6 * 16, gate)
    assert machine.finish().shown == [0x5800 - 5 * 8]


def test_iret_to_ring_3_and_back_by_a_fault(guest):
    code = f"""
    push 0x23
    push {STACK - 0x100}
    push 0x3002
    push {USER_CODE}
    lea rax, [rip + user]
    push rax
    iretq
    user:
    mov ecx, 55
    here: hlt
    vector_13:
    show ecx
    show [rsp + 16]
    show [rsp + 32]
    finish
    """
    assert guest(code, "long").finish().shown == [55, USER_CODE, STACK - 0x100]


def _absent_gate(machine, mode, vector):
    size = 16 if mode == "long" else 8
    gate = bytearray(machine.memory.read(IDT + vector * size, size))
    gate[5] &= 0x7F
    machine.memory.write(IDT + vector * size, gate)


def test_ports_in_ring_3_need_iopl_or_the_bitmap(guest):
    machine = guest("here: in al, 0x80\nfinish", "ring3")
    sregs = machine.sregs()
    sregs.tr.limit = 0x67
    machine.vcpu.set("sregs", bytes(sregs))
    regs = machine.regs()
    regs.rflags = 2
    machine.vcpu.set("regs", bytes(regs))
    assert shown_trap(machine) == (13, 0, 0, USER_CODE)


def test_iopl_3_opens_ports_to_ring_3(guest, native):
    machine = guest("in al, 0x80\nmov ebx, 1\nshow ebx\nfinish", "ring3")
    sregs = machine.sregs()
    sregs.tr.limit = 0x67
    machine.vcpu.set("sregs", bytes(sregs))
    assert machine.finish().shown == [1]


def test_stack_segment_of_ring_0_is_selected_on_entry(guest):
    machine = guest("here: ud2\nfinish\nvector_6:\nmov ebx, cs\nshow ebx\nmov ebx, ss\nshow ebx\nfinish", "ring3")
    cs, ss = machine.finish().shown
    assert cs == CODE64
    assert ss in (0, DATA_SEGMENT)  # long mode loads a null SS on a change of ring
