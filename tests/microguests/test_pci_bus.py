"""PCI as a guest uses it: find a device, move it, take its messages and its interrupt line."""

from __future__ import annotations

import pytest
from apic import LEVEL, MSI_ADDRESS, end_of_interrupt, ioapic, lapic_on
from microguest import Recorder
from test_interrupts import MODES, counting, wait_for

from kvmkit.bus import AddressSpace, Device, pc
from kvmkit.pci import Bar, Function, HostBridge, Identity
from kvmkit.pci.bridge import ConfigPorts
from kvmkit.pci.msix import Msix

MOVED = pc.PCI_MMIO + 0x100000
RING, STATUS, PENDING = 0x8000, 0x8008, 0x9000


class Bell(Device):
    """A write interrupts; reading STATUS says so and takes it back."""

    def __init__(self) -> None:
        self.function: Function | None = None

    def write(self, offset: int, size: int, value: int) -> None:
        if self.function.uses_msix:
            self.function.msix.trigger(value)
        else:
            self.function.interrupt(True)

    def read(self, offset: int, size: int) -> int:
        was = self.function.interrupting
        self.function.interrupt(False)
        return int(was)


class Whole(Device):
    """A BAR with an address space in it."""

    def __init__(self) -> None:
        self.space = AddressSpace("BAR")

    def read(self, offset: int, size: int) -> int:
        return self.space.read(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.space.write(offset, size, value)


class Board:
    """A bridge with one device, on a micro-guest."""

    def __init__(self, machine) -> None:
        self.bridge = HostBridge(machine.vm, machine.memory, machine.mmio)
        machine.ports.add(pc.PCI_CONFIG_PORT, 8, ConfigPorts(self.bridge, Recorder()))
        self.msix = Msix(self.bridge.routes, 2, bar=0, table_offset=0, pending_offset=PENDING)
        bell, bar = Bell(), Whole()
        bar.space.add(0, self.msix.table_bytes, self.msix.table)
        bar.space.add(RING, 0x10, bell)
        bar.space.add(PENDING, 8, self.msix.pending_bits)
        identity = Identity(vendor=0x1234, device=0x5678, class_code=0xFF0000)
        self.function = bell.function = Function("bell", identity, [Bar(0, 0x10000, bar)], interrupt_pin=1)
        self.function.add_msix(self.msix)
        self.bridge.add(self.function)


def register(offset: int, value: int) -> str:
    """Write 32 bits of slot 1's configuration space through the ports."""
    return (
        f"mov edx, 0xcf8\nmov eax, {0x80000800 | offset:#x}\nout dx, eax\n"
        f"mov edx, 0xcfc\nmov eax, {value:#x}\nout dx, eax\n"
    )


def store(address: int, value: int) -> str:
    return f"mov edi, {address:#x}\nmov dword ptr [edi], {value:#x}\n"


def load(address: int) -> str:
    return f"mov edi, {address:#x}\nmov ecx, [edi]\nshow ecx\n"


@pytest.mark.parametrize("mode", ["protected", "long", "ring3"])
def test_a_device_is_found_and_moved_while_the_guest_runs(guest, mode):
    code = load(pc.PCI_ECAM + 0x8000)
    code += register(4, 2) + load(pc.PCI_MMIO + 12)
    code += register(0x10, MOVED) + load(pc.PCI_MMIO + 12) + load(MOVED + 12)
    code += register(0x10, 0xFEC00000) + load(0xFEC00000) + load(MOVED + 12)
    code += register(0x10, 0x1000) + load(0x1000) + register(4, 0) + "finish\n"
    machine = guest(code, mode)
    Board(machine)
    at_0x1000 = int.from_bytes(machine.memory.read(0x1000, 4), "little")
    nothing = 0xFFFFFFFF
    assert machine.finish().shown == [0x56781234, 1, nothing, 1, 0, nothing, at_0x1000]


@pytest.mark.parametrize("mode", MODES)
def test_messages_come_and_wait_under_their_mask(guest, native_iret, mode):
    code = "xor ebx, ebx\n" + lapic_on() + register(4, 6)
    for index, vector in enumerate((0x51, 0x52)):
        entry = pc.PCI_MMIO + 16 * index
        code += store(entry, MSI_ADDRESS) + store(entry + 8, vector) + store(entry + 12, index)
    code += register(0x7C, 0x80010011)  # MSI-X on; what is read-only stays as it is
    code += store(pc.PCI_MMIO + RING, 0) + wait_for(1).replace("finish\n", "")
    code += store(pc.PCI_MMIO + RING, 1) + load(pc.PCI_MMIO + PENDING)
    code += store(pc.PCI_MMIO + 16 + 12, 0) + wait_for(101)
    code += counting(0x51, mode, end_of_interrupt())
    code += counting(0x52, mode, "add ebx, 99\n" + end_of_interrupt())
    machine = guest(code, mode)
    board = Board(machine)
    assert board.function.config.get(0x7C, 1) == 0x11
    assert machine.finish().shown == [1, 2, 101]


@pytest.mark.parametrize("mode", MODES)
def test_a_line_stays_up_until_the_device_is_served(guest, native_iret, mode):
    gsi = HostBridge.gsi(1, 1)
    code = "xor ebx, ebx\n" + lapic_on() + ioapic(gsi, 0x61 | LEVEL) + register(4, 2)
    code += store(pc.PCI_MMIO + RING, 0) + wait_for(3)
    # The first two handlers leave the device as it is, and so are called again.
    served = f"cmp ebx, 3\njb 77f\nmov edi, {pc.PCI_MMIO + STATUS:#x}\nmov eax, [edi]\n77:\n"
    code += counting(0x61, mode, served + end_of_interrupt())
    machine = guest(code, mode)
    board = Board(machine)
    assert machine.finish().shown == [3]
    assert not board.function.interrupting
