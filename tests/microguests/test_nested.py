"""The VMM that guests run (see tests/kvmhost/test_host.py) is assembled here, where there is an assembler."""

from __future__ import annotations

from nested import BASE, HEADERS, vmm


def test_the_vmm_is_a_program() -> None:
    program = vmm()
    assert program.startswith(b"\x7fELF")
    assert int.from_bytes(program[24:32], "little") == BASE + HEADERS
    assert b"/dev/kvm\0" in program
