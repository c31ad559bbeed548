"""Interrupts: through the PICs, the IOAPIC, as messages, and from the timers; HLT and what wakes it."""

from __future__ import annotations

import threading

import pytest
from apic import (
    DEADLINE,
    DIVIDE,
    INITIAL,
    LEVEL,
    MASKED,
    MSI_ADDRESS,
    PERIODIC,
    TIMER,
    end_of_interrupt,
    ioapic,
    lapic,
    lapic_on,
    pics,
    pit,
)
from microguest import USER_CODE, Recorder

from kvmkit.accel import MsiRoute

MODES = ["protected", "long"]
RETURN = {"protected": "iretd", "long": "iretq"}
READY_PORT = 0x600


class Ready(Recorder):
    """Does something in another thread as soon as the guest writes here."""

    def __init__(self, action):
        super().__init__()
        self.action = action

    def write(self, offset, size, value):
        threading.Thread(target=self.action).start()


def wait_for(count: int, loop: str = "sti\nhlt\n") -> str:
    """Wait until `ebx` has been counted up to `count` by a handler."""
    return f"88: cli\ncmp ebx, {count}\njae 99f\n{loop}jmp 88b\n99:\nshow ebx\nfinish\n"


def counting(vector: int, mode: str, eoi: str) -> str:
    return f"vector_{vector}:\ninc ebx\n{eoi}{RETURN[mode]}\n"


PIC_EOI = "mov al, 0x20\nout 0x20, al\n"


@pytest.mark.parametrize("mode", MODES)
def test_pit_ticks_through_the_pic(guest, native_iret, mode):
    code = "xor ebx, ebx\n" + pics(0xFE) + pit(2, 5000) + wait_for(3) + counting(0x20, mode, PIC_EOI)
    assert guest(code, mode).finish().shown[0] >= 3  # a slow host may see another before it looks


def test_pit_ticks_in_real_mode(guest):
    code = f"xor ebx, ebx\n{pics(0xFE)}{pit(2, 5000)}{wait_for(3)}vector_32:\ninc ebx\n{PIC_EOI}iret\n"
    assert guest(code, "real").finish().shown[0] >= 3  # a slow host may see another before it looks


def test_pit_one_shot_ticks_once(guest):
    code = f"xor ebx, ebx\n{pics(0xFE)}{pit(0, 1000)}{wait_for(1)}{counting(0x20, 'long', PIC_EOI)}"
    assert guest(code, "long").finish().shown == [1]


def test_pit_reaches_ioapic_pin_2(guest):
    code = (
        f"xor ebx, ebx\n{lapic_on()}{pics()}{ioapic(2, 0x41)}{pit(2, 5000)}{wait_for(2)}"
        f"{counting(0x41, 'long', end_of_interrupt())}"
    )
    assert guest(code, "long").finish().shown[0] >= 2  # a slow host may see another before it looks


def test_slave_pic_delivers_through_the_master(guest):
    eoi = "mov al, 0x20\nout 0xa0, al\nout 0x20, al\n"
    code = (
        f"xor ebx, ebx\n{pics(0xFB, 0xFD)}mov dx, {READY_PORT}\nout dx, al\n{wait_for(1)}{counting(0x29, 'long', eoi)}"
    )
    machine = guest(code, "long")
    machine.ports.add(READY_PORT, 1, Ready(lambda: machine.vm.set_irq(9, 1)))
    assert machine.finish().shown == [1]


def test_masked_line_does_not_interrupt(guest):
    """Line 4 stays masked; line 3, raised after it, comes."""
    code = (
        f"xor ebx, ebx\nxor ecx, ecx\n{pics(0xF7)}mov dx, {READY_PORT}\nout dx, al\n{wait_for(1)}"
        f"vector_36:\nmov ebx, 1000\niretq\n{counting(0x23, 'long', PIC_EOI)}"
    )
    machine = guest(code, "long")

    def both():
        machine.vm.set_irq(4, 1)
        machine.vm.set_irq(3, 1)

    machine.ports.add(READY_PORT, 1, Ready(both))
    assert machine.finish().shown == [1]


@pytest.mark.parametrize("mode", MODES)
def test_lapic_timer_one_shot(guest, native_iret, mode):
    timer = lapic(DIVIDE, 0xB) + lapic(TIMER, 0x40) + lapic(INITIAL, 100_000)
    code = f"xor ebx, ebx\n{pics()}{lapic_on()}{timer}{wait_for(1)}{counting(0x40, mode, end_of_interrupt())}"
    assert guest(code, mode).finish().shown == [1]


@pytest.mark.parametrize("mode", MODES)
def test_lapic_timer_periodic(guest, native_iret, mode):
    timer = lapic(DIVIDE, 0xB) + lapic(TIMER, 0x40 | PERIODIC) + lapic(INITIAL, 500_000)
    code = f"xor ebx, ebx\n{pics()}{lapic_on()}{timer}{wait_for(3)}{counting(0x40, mode, end_of_interrupt())}"
    assert guest(code, mode).finish().shown[0] >= 3  # a slow host may see another before it looks


def test_lapic_timer_by_tsc_deadline(guest):
    code = f"""
    xor ebx, ebx
    mov eax, 1
    xor ecx, ecx
    cpuid
    bt ecx, 24
    jnc absent
    xor ebx, ebx
    {pics()}{lapic_on()}{lapic(TIMER, 0x40 | DEADLINE)}
    rdtsc
    add eax, 100000
    adc edx, 0
    mov ecx, 0x6e0
    wrmsr
    {wait_for(1)}
    absent: mov ecx, 0xdead
    show ecx
    finish
    {counting(0x40, "long", end_of_interrupt())}
    """
    shown = guest(code, "long").finish().shown
    if shown == [0xDEAD]:
        pytest.skip("this engine's LAPIC has no TSC deadline")
    assert shown == [1]


def test_ioapic_edge_interrupts_once_for_each_edge(guest):
    code = (
        f"xor ebx, ebx\n{pics()}{lapic_on()}{ioapic(20, 0x41)}mov dx, {READY_PORT}\nout dx, al\n{wait_for(2)}"
        f"vector_65:\ninc ebx\n{end_of_interrupt()}cmp ebx, 2\njae 1f\nmov dx, {READY_PORT}\nout dx, al\n1: iretq\n"
    )
    machine = guest(code, "long")

    def pulse():
        machine.vm.set_irq(20, 1)
        machine.vm.set_irq(20, 0)

    machine.ports.add(READY_PORT, 1, Ready(pulse))
    assert machine.finish().shown == [2]


def test_ioapic_level_interrupts_until_the_line_falls(guest):
    code = (
        f"xor ebx, ebx\n{pics()}{lapic_on()}{ioapic(20, 0x41 | LEVEL)}mov dx, {READY_PORT}\nout dx, al\n{wait_for(3)}"
        f"vector_65:\ninc ebx\ncmp ebx, 3\njb 1f\nmov dx, {READY_PORT + 8}\nout dx, al\n1:{end_of_interrupt()}iretq\n"
    )
    machine = guest(code, "long")

    class Line(Recorder):
        def write(self, offset, size, value):
            machine.vm.set_irq(20, 1 if offset == 0 else 0)

    machine.ports.add(READY_PORT, 16, Line())
    assert machine.finish().shown == [3]


def test_ioapic_masked_pin_does_not_interrupt(guest):
    code = (
        f"xor ebx, ebx\n{pics()}{lapic_on()}{ioapic(20, 0x41 | MASKED)}{ioapic(21, 0x42)}"
        f"mov dx, {READY_PORT}\nout dx, al\n{wait_for(1)}"
        f"vector_65:\nmov ebx, 1000\niretq\n{counting(0x42, 'long', end_of_interrupt())}"
    )
    machine = guest(code, "long")

    def both():
        machine.vm.set_irq(20, 1)
        machine.vm.set_irq(21, 1)

    machine.ports.add(READY_PORT, 1, Ready(both))
    assert machine.finish().shown == [1]


def _msi_guest(guest):
    code = (
        f"xor ebx, ebx\n{pics()}{lapic_on()}mov dx, {READY_PORT}\nout dx, al\n{wait_for(1)}"
        f"{counting(0x55, 'long', end_of_interrupt())}"
    )
    return guest(code, "long")


def test_message_wakes_hlt(guest):
    machine = _msi_guest(guest)
    machine.ports.add(READY_PORT, 1, Ready(lambda: machine.vm.signal_msi(MSI_ADDRESS, 0x55)))
    assert machine.finish().shown == [1]


def test_message_by_a_route(guest):
    machine = _msi_guest(guest)
    machine.vm.set_msi_routes([MsiRoute(24, MSI_ADDRESS, 0x44), MsiRoute(30, MSI_ADDRESS, 0x55)])
    machine.ports.add(READY_PORT, 1, Ready(lambda: machine.vm.set_irq(30, 1)))
    assert machine.finish().shown == [1]


def test_interrupt_waits_for_sti_and_its_shadow(guest):
    """The instruction behind STI still runs before the interrupt that was pending comes."""
    code = (
        f"xor ebx, ebx\n{pics()}{lapic_on()}mov dx, {READY_PORT}\nout dx, al\nmov ecx, 1\nsti\nmov ecx, 2\nnop\nnop\n"
        f"1: jmp 1b\nvector_85:\nshow ecx\nfinish\n"
    )
    machine = guest(code, "long")

    class Message(Recorder):
        def write(self, offset, size, value):
            machine.vm.signal_msi(MSI_ADDRESS, 0x55)

    machine.ports.add(READY_PORT, 1, Message())
    assert machine.finish().shown == [2]


def test_higher_vector_goes_first(guest):
    code = (
        f"xor ebx, ebx\n{pics()}{lapic_on()}mov dx, {READY_PORT}\nout dx, al\n{wait_for(2)}"
        f"vector_64:\nmov ecx, 0x40\nshow ecx\ninc ebx\n{end_of_interrupt()}iretq\n"
        f"vector_96:\nmov ecx, 0x60\nshow ecx\ninc ebx\n{end_of_interrupt()}iretq\n"
    )
    machine = guest(code, "long")

    class Messages(Recorder):
        def write(self, offset, size, value):
            machine.vm.signal_msi(MSI_ADDRESS, 0x40)
            machine.vm.signal_msi(MSI_ADDRESS, 0x60)

    machine.ports.add(READY_PORT, 1, Messages())
    assert machine.finish().shown == [0x60, 0x40, 2]


def test_interrupt_from_ring_3_returns_there(guest):
    code = (
        f"xor ebx, ebx\n{lapic_on()}mov dx, {READY_PORT}\nout dx, al\n1: cmp ebx, 1\njb 1b\nud2\n"
        f"{counting(0x55, 'long', end_of_interrupt())}"
    )
    machine = guest(code, "ring3")
    regs = machine.regs()
    regs.rflags |= 0x200
    machine.vcpu.set("regs", bytes(regs))
    machine.ports.add(READY_PORT, 1, Ready(lambda: machine.vm.signal_msi(MSI_ADDRESS, 0x55)))
    assert machine.finish().shown[:4] == [6, 0, machine.shown[2], USER_CODE]
