"""More than one vCPU: INIT and SIPI, and what each is told about itself."""

from __future__ import annotations

import pytest
from apic import ICR_HIGH, lapic, lapic_on

from kvmkit.errors import BadInput

pytestmark = pytest.mark.usefixtures("only_kvm")

# INIT, then two SIPIs, to all but the sender; the page that they start at is in the vector.
START_OTHERS = """
{on}{high}
mov edi, 0xfee00300
mov dword ptr [edi], 0x000c4500
mov eax, offset ap
shr eax, 12
or eax, 0x000c4600
mov dword ptr [edi], eax
mov dword ptr [edi], eax
"""
AP = """
    .code16
    .balign 4096
    ap:
    xor ax, ax
    mov ds, ax
    mov eax, 1
    cpuid
    shr ebx, 24
    mov byte ptr [ebx + 0x7800], 1
    lock inc dword ptr [0x7900]
    1: hlt
    jmp 1b
"""


def start(others: int) -> str:
    bring_up = START_OTHERS.format(on=lapic_on(), high=lapic(ICR_HIGH, 0))
    return f"{bring_up}1: pause\ncmp dword ptr [0x7900], {others}\njb 1b\nmov ebx, [0x7900]\nshow ebx\nfinish\n{AP}"


@pytest.mark.parametrize("cpus", [2, 4])
@pytest.mark.parametrize("mode", ["protected", "long"])
def test_others_start_by_init_and_sipi_with_their_own_id(guest, mode, cpus):
    machine = guest(start(cpus - 1), mode, cpus=cpus)
    machine.memory.write(0x7800, bytes(0x200))
    machine.finish()
    assert machine.shown == [cpus - 1]
    assert machine.memory.read(0x7800, 8) == bytes([0] + [1] * (cpus - 1)).ljust(8, b"\0")


def test_others_wait_until_they_are_called(guest):
    machine = guest("mov ecx, 5\nshow ecx\nfinish", "long", cpus=2)
    machine.finish()
    assert int.from_bytes(machine.vcpus[0].get("mp_state"), "little") == 0  # runnable
    assert int.from_bytes(machine.vcpus[1].get("mp_state"), "little") == 1  # waits for INIT


def test_more_than_this_vm_has_is_refused(guest):
    machine = guest("finish", "long", cpus=2)
    with pytest.raises(BadInput):
        machine.vm.create_vcpu(2)


@pytest.mark.parametrize("cpus", [0, -1, 10000])
def test_a_number_of_cpus_that_can_not_be_is_refused(guest, cpus):
    with pytest.raises(BadInput):
        guest("finish", "long", cpus=cpus)
