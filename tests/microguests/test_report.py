"""The report about a guest that can't go on: readable whatever state the guest is in."""

from __future__ import annotations

import pytest
from microguest import STACK

from kvmkit.accel import Exit, ExitReason
from kvmkit.accel.report import report

STOPPED = Exit(ExitReason.INTERNAL_ERROR, 1, "as a test wants it")


def stopped(guest, mode):
    machine = guest("mov eax, 0x12345678\nhere: mov ebx, 0x9abcdef0\npush 0x55\nfinish", mode)
    return machine.finish()


@pytest.mark.parametrize(
    ("mode", "words"),
    [
        ("real", "real mode, ring 0"),
        ("protected", "protected mode, 32-bit"),
        ("long", "long mode, ring 0"),
        ("ring3", "ring 3"),
    ],
)
def test_report_tells_the_mode(guest, mode, words):
    machine = stopped(guest, mode)
    assert words in report(machine.vcpu, machine.memory, STOPPED)


def test_report_tells_reason_registers_code_and_stack(guest):
    machine = stopped(guest, "long")
    text = report(machine.vcpu, machine.memory, STOPPED)
    lines = text.splitlines()
    assert lines[0] == "vCPU 0: the engine can't go on: as a test wants it"
    assert "rax 0000000012345678" in text
    assert "rbx 000000009abcdef0" in text
    assert f"{machine.regs().rip:016x}" in lines[1]
    code = next(line for line in lines if line.startswith("  code"))
    rip = machine.regs().rip
    assert f"<{machine.memory.read(rip, 1).hex()}>" in code
    assert "bb f0 de bc 9a" in report_around(machine, machine.symbols["here"])
    assert next(line for line in lines if line.startswith("  stack")).split()[1] == f"{0x55:016x}"
    assert machine.regs().rsp == STACK - 8
    assert len(lines) <= 25


def report_around(machine, address):
    regs = machine.regs()
    regs.rip = address
    machine.vcpu.set("regs", bytes(regs))
    return report(machine.vcpu, machine.memory, STOPPED).replace("<", "").replace(">", "")


@pytest.mark.parametrize("rip", [0, 0x123456789000, 0x7FFFFFFFF000, 0xD0000000, 0xFFFFFFFFFFFFFFFF])
def test_report_stands_code_and_stack_that_can_not_be_read(guest, rip):
    machine = guest("finish", "long")
    regs = machine.regs()
    regs.rip = regs.rsp = rip
    machine.vcpu.set("regs", bytes(regs))
    text = report(machine.vcpu, machine.memory, STOPPED)
    if rip:
        assert "--" in text


def test_report_stands_page_tables_that_lead_nowhere(guest):
    machine = guest("finish", "long")
    sregs = machine.sregs()
    sregs.cr3 = 0xFFFFF000
    machine.vcpu.set("sregs", bytes(sregs))
    assert "<-->" in report(machine.vcpu, machine.memory, STOPPED)


@pytest.mark.usefixtures("only_kvm")
def test_kvms_own_error_is_told_with_the_instruction(guest):
    """Code in a hole of the address space can't be fetched, and KVM can't emulate what it can't fetch."""
    machine = guest("mov rax, 0xd0000000\njmp rax", "long")
    result = machine.run()
    assert result.reason == ExitReason.INTERNAL_ERROR
    assert "d0000000" in report(machine.vcpu, machine.memory, result)
