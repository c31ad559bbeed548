"""A bus with test devices on a VM of the software engine, driven as a guest drives it: by ports and by memory."""

from __future__ import annotations

import struct
import time

from kvmkit.accel import tcg
from kvmkit.bus import AddressSpace, Device, pc
from kvmkit.bus.window import Window
from kvmkit.memory import GuestMemory
from kvmkit.pci import Bar, Function, HostBridge, Identity
from kvmkit.pci.bridge import ConfigPorts
from kvmkit.pci.msix import Msix

IDENTITY = Identity(vendor=0x1234, device=0x5678, class_code=0xFF0000, revision=3, subsystem_vendor=1, subsystem=2)
MIB = 1 << 20
COMMAND, BAR0, BAR1 = 4, 0x10, 0x14
MEMORY = 2


class Memory(Device):
    """Registers that hold what is written."""

    def __init__(self, name: str = "") -> None:
        self.name = name
        self.values: dict[int, int] = {}

    def read(self, offset: int, size: int) -> int:
        return self.values.get(offset, 0)

    def write(self, offset: int, size: int, value: int) -> None:
        self.values[offset] = value


class ResetPort(Device):
    def __init__(self) -> None:
        self.written: list[int] = []

    def read(self, offset: int, size: int) -> int:
        return 0x5A

    def write(self, offset: int, size: int, value: int) -> None:
        self.written.append(value)


class Bus:
    """A machine's bridge. `config` is the memory way to a slot's registers, `port` the older one."""

    def __init__(self, memory: int = 16 * MIB) -> None:
        self.memory = GuestMemory(memory)
        self.ports = AddressSpace("ports")
        self.mmio = AddressSpace("memory")
        self.vm = tcg.create(self.memory, self.ports, self.mmio, cpu="max", cpus=1)
        self.vcpu = self.vm.create_vcpu(0)
        self.bridge = HostBridge(self.vm, self.memory, self.mmio)
        self.reset_port = ResetPort()
        self.ports.add(pc.PCI_CONFIG_PORT, 8, ConfigPorts(self.bridge, self.reset_port))
        lapic = bytearray(self.vcpu.get("lapic"))
        lapic[0xF0:0xF4] = struct.pack("<I", 0x1FF)  # software-enabled
        self.vcpu.set("lapic", bytes(lapic))

    def add(self, *bars: Bar, **options: object) -> Function:
        function = Function("test device", IDENTITY, bars, **options)
        self.bridge.add(function)
        return function

    def add_msix(self, count: int) -> Function:
        """A device whose BAR 0 is nothing but its vectors: the table at 0, the pending bits at 0x8000."""
        msix = Msix(self.bridge.routes, count, bar=0, table_offset=0, pending_offset=0x8000)
        space = AddressSpace("BAR 0")
        space.add(0, msix.table_bytes, msix.table)
        space.add(0x8000, msix.pending_bytes, msix.pending_bits)
        function = Function("vectors", IDENTITY, [Bar(0, 0x10000, Window(space), wide=True)])
        function.add_msix(msix)
        self.bridge.add(function)
        self.write(function, COMMAND, 2, MEMORY)
        return function

    def close(self) -> None:
        self.vcpu.close()
        self.vm.close()
        self.bridge.close()
        self.memory.close()

    # Configuration space.

    def address(self, function: Function, register: int) -> int:
        return pc.PCI_ECAM + (function.slot << 15) + register

    def read(self, function: Function, register: int, size: int) -> int:
        return self.mmio.read(self.address(function, register), size) & ((1 << 8 * size) - 1)

    def write(self, function: Function, register: int, size: int, value: int) -> None:
        self.mmio.write(self.address(function, register), size, value)

    def port_read(self, slot: int, register: int, size: int) -> int:
        self.ports.write(0xCF8, 4, 0x80000000 | slot << 11 | register & 0xFC)
        return self.ports.read(0xCFC + (register & 3), size) & ((1 << 8 * size) - 1)

    def port_write(self, slot: int, register: int, size: int, value: int) -> None:
        self.ports.write(0xCF8, 4, 0x80000000 | slot << 11 | register & 0xFC)
        self.ports.write(0xCFC + (register & 3), size, value)

    def move(self, function: Function, index: int, address: int, *, wide: bool = False) -> None:
        self.write(function, BAR0 + 4 * index, 4, address & 0xFFFFFFFF)
        if wide:
            self.write(function, BAR0 + 4 * index + 4, 4, address >> 32)

    def capability(self, function: Function, kind: int) -> int:
        """The offset of a capability, as a guest finds it; 0: none."""
        offset = self.read(function, 0x34, 1)
        while offset and self.read(function, offset, 1) != kind:
            offset = self.read(function, offset + 1, 1)
        return offset

    # Interrupts.

    def interrupts(self) -> set[int]:
        """The vectors that have arrived at the local APIC and were not taken."""
        lapic = self.vcpu.get("lapic")
        words = [struct.unpack_from("<I", lapic, 0x200 + 16 * i)[0] for i in range(8)]
        return {32 * i + bit for i, word in enumerate(words) for bit in range(32) if word >> bit & 1}

    def arrives(self, vector: int) -> bool:
        """It comes, in a moment: an eventfd is passed on by another thread."""
        until = time.monotonic() + 5
        while vector not in self.interrupts():
            if time.monotonic() > until:
                return False
            time.sleep(0.001)
        return True
