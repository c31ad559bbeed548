"""Doorbells (ioeventfd) and interrupts by eventfd (irqfd): they pass between guest and device without the bus."""

from __future__ import annotations

import os
import select
import threading

import pytest
from apic import LEVEL, end_of_interrupt, ioapic, lapic_on, pics
from microguest import MMIO, Recorder

PORT = 0x620


@pytest.fixture
def bell():
    fd = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
    yield fd
    os.close(fd)


def count(fd: int) -> int:
    try:
        return os.eventfd_read(fd)
    except BlockingIOError:
        return 0


def port_guest(guest, code):
    machine = guest(f"mov dx, {PORT}\n{code}\nfinish", "ring3")
    device = Recorder()
    machine.ports.add(PORT, 8, device)
    return machine, device


def mmio_guest(guest, code):
    machine = guest(f"mov ebx, {MMIO}\n{code}\nfinish", "ring3")
    device = Recorder()
    machine.mmio.add(MMIO, 0x1000, device)
    return machine, device


@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax")])
def test_port_doorbell_rings_instead_of_the_device(guest, bell, size, register):
    machine, device = port_guest(guest, f"out dx, {register}\nout dx, {register}")
    machine.vm.ioeventfd(bell, PORT, size, port=True)
    machine.finish()
    assert count(bell) == 2
    assert device.writes == []


@pytest.mark.parametrize(("size", "register"), [(1, "al"), (2, "ax"), (4, "eax"), (8, "rax")])
def test_memory_doorbell_rings_instead_of_the_device(guest, bell, size, register):
    machine, device = mmio_guest(guest, f"mov [rbx + 16], {register}\nmov [rbx + 16], {register}")
    machine.vm.ioeventfd(bell, MMIO + 16, size)
    machine.finish()
    assert count(bell) == 2
    assert device.writes == []


def test_doorbell_of_another_width_does_not_ring(guest, bell):
    machine, device = mmio_guest(guest, "xor eax, eax\nmov [rbx], ax")
    machine.vm.ioeventfd(bell, MMIO, 4)
    machine.finish()
    assert count(bell) == 0
    assert device.writes == [(0, 2, 0)]


def test_doorbell_of_any_width_rings_for_each(guest, bell):
    machine, device = mmio_guest(guest, "mov [rbx], al\nmov [rbx], ax\nmov [rbx], eax\nmov [rbx], rax")
    machine.vm.ioeventfd(bell, MMIO, 0)
    machine.finish()
    assert count(bell) == 4
    assert device.writes == []


def test_doorbell_next_door_does_not_ring(guest, bell):
    machine, device = mmio_guest(guest, "xor eax, eax\nmov [rbx + 4], eax")
    machine.vm.ioeventfd(bell, MMIO, 4)
    machine.finish()
    assert count(bell) == 0
    assert device.writes == [(4, 4, 0)]


def test_reading_a_doorbell_asks_the_device(guest, bell):
    machine, device = mmio_guest(guest, "mov ecx, [rbx]")
    machine.vm.ioeventfd(bell, MMIO, 4)
    machine.finish()
    assert count(bell) == 0
    assert device.reads == [(0, 4)]


@pytest.mark.parametrize("port", [False, True])
def test_matching_value_chooses_the_doorbell(guest, bell, port):
    store = "out dx, ax" if port else "mov [rbx], ax"
    code = "".join(f"mov eax, {value}\n{store}\n" for value in (5, 6, 7, 6))
    machine, device = (port_guest if port else mmio_guest)(guest, code)
    other = os.eventfd(0, os.EFD_NONBLOCK)
    address = PORT if port else MMIO
    machine.vm.ioeventfd(bell, address, 2, port=port, match=6)
    machine.vm.ioeventfd(other, address, 2, port=port, match=5)
    machine.finish()
    assert (count(bell), count(other)) == (2, 1)
    assert device.writes == [(0, 2, 7)]
    os.close(other)


@pytest.mark.parametrize("match", [None, 3])
def test_removed_doorbell_is_the_devices_again(guest, bell, match):
    machine, device = mmio_guest(guest, "mov eax, 3\nmov [rbx], eax")
    machine.vm.ioeventfd(bell, MMIO, 4, match=match)
    machine.vm.remove_ioeventfd(bell, MMIO, 4, match=match)
    machine.finish()
    assert count(bell) == 0
    assert device.writes == [(0, 4, 3)]


def irq_code(low: int, wanted: int, handler: str = "") -> str:
    return (
        f"xor ebx, ebx\n{pics()}{lapic_on()}{ioapic(20, low)}mov dx, {PORT}\nout dx, al\n"
        f"1: cli\ncmp ebx, {wanted}\njae 2f\nsti\nhlt\njmp 1b\n2: show ebx\nfinish\n"
        f"vector_65:\ninc ebx\n{handler}{end_of_interrupt()}iretq\n"
    )


class Writer(Recorder):
    """Signals an eventfd when the guest writes to offset 0, does `extra` at offset 1."""

    def __init__(self, fd, extra=lambda: None):
        super().__init__()
        self.fd = fd
        self.extra = extra

    def write(self, offset, size, value):
        if offset == 0:
            os.eventfd_write(self.fd, 1)
        else:
            self.extra()


def test_irqfd_interrupts(guest, bell):
    machine = guest(irq_code(0x41, 1), "long")
    machine.vm.irqfd(bell, 20)
    machine.ports.add(PORT, 1, Writer(bell))
    assert machine.finish().shown == [1]


def test_irqfd_with_resample_interrupts_again_until_nobody_asks(guest, bell):
    """The EOI lowers the line and tells the device, which asks twice more."""
    resample = os.eventfd(0, os.EFD_NONBLOCK)
    machine = guest(irq_code(0x41 | LEVEL, 3), "long")
    machine.vm.irqfd(bell, 20, resample)
    machine.ports.add(PORT, 2, Writer(bell))

    told = []

    def device():
        for _ in range(3):
            if not select.select([resample], [], [], 20)[0]:
                return
            told.append(os.eventfd_read(resample))
            if len(told) < 3:
                os.eventfd_write(bell, 1)

    thread = threading.Thread(target=device)
    thread.start()
    assert machine.finish().shown == [3]
    thread.join()
    assert len(told) == 3
    machine.vm.remove_irqfd(bell, 20)
    os.close(resample)


def test_removed_irqfd_does_not_interrupt(guest, bell):
    machine = guest(irq_code(0x41, 1), "long")
    silent = os.eventfd(0, os.EFD_NONBLOCK)
    machine.vm.irqfd(silent, 20)
    machine.vm.remove_irqfd(silent, 20)
    machine.vm.irqfd(bell, 20)
    os.eventfd_write(silent, 1)
    machine.ports.add(PORT, 1, Writer(bell))
    assert machine.finish().shown == [1]
    assert count(silent) == 1
    os.close(silent)
