"""Code that changes while it runs: by the guest itself and by a device."""

from __future__ import annotations

import pytest
from microguest import Recorder

MODES = ["real", "protected", "long", "ring3"]
MOV_EBX = {"real": 2, "protected": 1, "long": 1, "ring3": 1}  # where the immediate stands in `mov ebx, imm32`


@pytest.mark.parametrize("mode", MODES)
def test_guest_changes_the_next_instruction(guest, mode):
    code = f"lea si, [patch + {MOV_EBX[mode]}]\n" if mode == "real" else f"mov esi, offset patch + {MOV_EBX[mode]}\n"
    store = "mov dword ptr [si], 222" if mode == "real" else "mov dword ptr [esi], 222"
    machine = guest(f"{code}{store}\njmp patch\npatch: mov ebx, 111\nshow ebx\nfinish", mode)
    assert machine.finish().shown == [222]


@pytest.mark.parametrize("mode", ["protected", "long", "ring3"])
def test_guest_changes_code_that_has_run(guest, mode):
    code = """
    xor ecx, ecx
    again:
    patch: mov ebx, 111
    show ebx
    mov dword ptr [patch + 1], 222
    inc ecx
    cmp ecx, 2
    jb again
    finish
    """
    assert guest(code, mode).finish().shown == [111, 222]


@pytest.mark.parametrize("mode", ["protected", "long", "ring3"])
def test_device_writes_over_code_that_has_run(guest, mode):
    code = """
    mov ecx, 3
    again:
    patch: mov ebx, 111
    show ebx
    mov dx, 0x620
    out dx, al
    dec ecx
    jnz again
    finish
    """
    machine = guest(code, mode)
    values = iter([222, 333, 444])

    class Writer(Recorder):
        def write(self, offset, size, value):
            machine.memory.write(machine.symbols["patch"] + 1, next(values).to_bytes(4, "little"))
            machine.vm.memory_written(machine.symbols["patch"] + 1, 4)

    machine.ports.add(0x620, 1, Writer())
    assert machine.finish().shown == [111, 222, 333]


def test_device_writes_over_code_on_another_page(guest):
    code = """
    mov ecx, 2
    again: call there
    show ebx
    mov dx, 0x620
    out dx, al
    dec ecx
    jnz again
    finish
    .balign 4096
    there: mov ebx, 111
    ret
    """
    machine = guest(code, "ring3")

    class Writer(Recorder):
        def write(self, offset, size, value):
            machine.memory.write(machine.symbols["there"], bytes.fromhex("bb 07000000 c3"))
            machine.vm.memory_written(machine.symbols["there"], 6)

    machine.ports.add(0x620, 1, Writer())
    assert machine.finish().shown == [111, 7]
