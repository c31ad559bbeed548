"""The host bridge: bus 0, its configuration space by memory (ECAM) and by ports, and where its BARs answer.

Source: PCI Express Base 5.0, 7.2.2 (ECAM); PCI Local Bus 3.0, 3.2.2.3.2 (configuration by ports).
"""

from __future__ import annotations

import functools
import threading
from typing import TYPE_CHECKING, NamedTuple

from kvmkit.bus import AddressSpace, Device, pc
from kvmkit.devices.lines import OutputLine
from kvmkit.errors import BadInput
from kvmkit.memory import HIGH_RAM

from .config import CONFIG_BYTES, PLAIN_BYTES, Bar, Command, Identity
from .function import Function
from .intx import PinWatcher
from .routes import MsiRoutes

if TYPE_CHECKING:
    from kvmkit.accel import VirtualMachine
    from kvmkit.memory import GuestMemory

SLOTS = 32
HOST_BRIDGE = Identity(vendor=0x1B36, device=0x0008, class_code=0x060000, subsystem_vendor=0x1AF4, subsystem=0x1100)
"""The generic PCI Express host bridge: no driver needs to know it."""
NOTHING = 0xFFFFFFFFFFFFFFFF


class Window(NamedTuple):
    """Guest physical addresses [start, end) that the bridge passes on to its devices."""

    start: int
    end: int

    def holds(self, address: int, size: int) -> bool:
        return self.start <= address and address + size <= self.end


class HostBridge:
    """Bus 0 of a machine. Functions are added before the guest runs; then every method may be called by any vCPU."""

    def __init__(
        self, vm: VirtualMachine, memory: GuestMemory, mmio: AddressSpace, identity: Identity = HOST_BRIDGE
    ) -> None:
        self.vm = vm
        self.mmio = mmio
        self.routes = MsiRoutes(vm)
        self.pins = PinWatcher()
        self.functions: dict[int, Function] = {}
        """By slot; each is function 0 of its device."""
        top = memory.low if memory.span == memory.low else HIGH_RAM + memory.span - memory.low
        wide = pc.pci_mmio64(top)
        self.window = Window(pc.PCI_MMIO, pc.PCI_MMIO_END)
        self.window64 = Window(wide, wide + pc.PCI_MMIO64_SIZE)
        self._free = {False: self.window.start, True: self.window64.start}
        self.lock = threading.RLock()
        """Held while a function's configuration changes; a function's owner may use it for its own state."""
        self._answering: dict[tuple[int, int], int] = {}  # (slot, BAR) to address
        self._pins: dict[int, set[int]] = {gsi: set() for gsi in pc.PCI_IRQS}
        self._pin_lines = {gsi: OutputLine(functools.partial(vm.set_irq, gsi)) for gsi in pc.PCI_IRQS}
        self.ecam: Device = Ecam(self)
        self.config_space = pc.PCI_ECAM
        """Where the ECAM is."""
        self._add_ecam()
        self.add(Function("host bridge", identity, express=False), 0)

    def _add_ecam(self) -> None:
        self.mmio.add(pc.PCI_ECAM, pc.PCI_ECAM_SIZE, self.ecam)

    # Before the guest runs.

    def add(self, function: Function, slot: int | None = None) -> int:
        """Give a function its slot (the next that is free) and its BARs a place. Raises BadInput: there is no room."""
        if slot is None:
            slot = next((free for free in range(1, SLOTS) if free not in self.functions), SLOTS)
        if not 0 <= slot < SLOTS or slot in self.functions:
            raise BadInput(f"{function.name}: no free PCI slot; the bus has {SLOTS - 1}")
        for bar in function.config.bars:
            function.config.place_bar(bar, self._allocate(function, bar))
        self.functions[slot] = function
        function.slot, function.bridge = slot, self
        pin = function.config.get(0x3D, 1)
        if pin:
            function.line.line = functools.partial(self._pin, self.gsi(slot, pin), slot)
        return slot

    def _allocate(self, function: Function, bar: Bar) -> int:
        window = self.window64 if bar.wide else self.window
        address = -(-self._free[bar.wide] // bar.size) * bar.size
        if not window.holds(address, bar.size):
            raise BadInput(f"{function.name}: no room for {bar.size:#x} bytes of registers")
        self._free[bar.wide] = address + bar.size
        return address

    def described(self) -> tuple[Window, Window]:
        """The windows below and above 4 GiB, as an operating system is to be told of them."""
        return self.window, self.window64

    @staticmethod
    def gsi(slot: int, pin: int) -> int:
        """The interrupt line that pin INTA (1) to INTD (4) of a slot leads to."""
        return pc.PCI_IRQS[(slot + pin - 1) % len(pc.PCI_IRQS)]

    def gsis(self) -> tuple[tuple[int, int, int], ...]:
        """(slot, pin from 0, interrupt line) of every slot but the bridge's own."""
        return tuple((slot, pin - 1, self.gsi(slot, pin)) for slot in range(1, SLOTS) for pin in range(1, 5))

    def _pin(self, gsi: int, slot: int, level: int) -> None:
        """A function's pin; a line is up while any of its pins is."""
        with self.lock:
            pins = self._pins[gsi]
            (pins.add if level else pins.discard)(slot)
            self._pin_lines[gsi].update(len(pins) > 0)

    # Configuration space.

    def read(self, devfn: int, offset: int, size: int) -> int:
        """A register of device `devfn` >> 3, function `devfn` & 7. All ones: nothing is there."""
        function = self.functions.get(devfn >> 3) if not devfn & 7 else None
        if function is None:
            return NOTHING
        with self.lock:
            return function.read(offset, size)

    def write(self, devfn: int, offset: int, size: int, value: int) -> None:
        function = self.functions.get(devfn >> 3) if not devfn & 7 else None
        if function is not None:
            with self.lock:
                function.write(offset, size, value)

    # BARs.

    def remap(self) -> None:
        """Have every BAR answer where the guest has put it, if it may: a lower slot and BAR goes before a higher one.

        One that lies outside the windows, or over what is there already, does not answer until it is moved.
        """
        with self.lock:
            wanted = self._wanted()
            for key, address in list(self._answering.items()):
                if wanted.get(key) != address:
                    self._unmap(key, address)
            for key in sorted(wanted.keys() - self._answering.keys()):
                self._map(key, wanted[key])

    def _wanted(self) -> dict[tuple[int, int], int]:
        found: dict[tuple[int, int], int] = {}
        taken: list[tuple[int, int]] = []
        for slot, function in sorted(self.functions.items()):
            if not function.config.command & Command.MEMORY:
                continue
            for bar in function.config.bars:
                start = function.config.bar_address(bar)
                end = start + bar.size
                inside = any(window.holds(start, bar.size) for window in (self.window, self.window64))
                if inside and all(end <= other[0] or other[1] <= start for other in taken):
                    taken.append((start, end))
                    found[slot, bar.index] = start
        return found

    def _bar(self, key: tuple[int, int]) -> tuple[Function, Bar]:
        function = self.functions[key[0]]
        return function, next(bar for bar in function.config.bars if bar.index == key[1])

    def _unmap(self, key: tuple[int, int], address: int) -> None:
        function, bar = self._bar(key)
        del self._answering[key]
        self.mmio.remove(address)
        function.mapped.pop(bar.index, None)
        if function.moved is not None:
            function.moved(bar, None)

    def _map(self, key: tuple[int, int], address: int) -> None:
        function, bar = self._bar(key)
        if not self.mmio.free_at(address, bar.size):
            return
        self.mmio.add(address, bar.size, bar.device)
        self._answering[key] = address
        function.mapped[bar.index] = address
        if function.moved is not None:
            function.moved(bar, address)

    def stop(self) -> None:
        """No interrupt pin changes after this. To be called before the engine's VM is closed."""
        self.pins.close()

    def close(self) -> None:
        """Give back what the functions hold. The engine's VM is closed by now."""
        for function in self.functions.values():
            function.close()


class Ecam(Device):
    """Configuration space as memory: 4 KiB for each function of each bus, of which there is one."""

    def __init__(self, bridge: HostBridge) -> None:
        self.bridge = bridge

    def read(self, offset: int, size: int) -> int:
        return self.bridge.read(offset // CONFIG_BYTES, offset % CONFIG_BYTES, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.bridge.write(offset // CONFIG_BYTES, offset % CONFIG_BYTES, size, value)


class ConfigPorts(Device):
    """Ports 0xcf8 to 0xcff: a register's address, then its data. A single byte at 0xcf9 is the reset port's.

    `reset_port`: the device that answers there.
    """

    ENABLE = 1 << 31
    ADDRESS_BITS = 0x80FFFFFC

    def __init__(self, bridge: HostBridge, reset_port: Device) -> None:
        self.bridge = bridge
        self.reset_port = reset_port
        self.address = 0

    def _register(self, offset: int) -> tuple[int, int] | None:
        """(device and function, offset) of the register that the data port stands for; None: no such bus."""
        if not self.address & self.ENABLE or self.address >> 16 & 0xFF:
            return None
        return self.address >> 8 & 0xFF, (self.address & (PLAIN_BYTES - 4)) + offset - 4

    def read(self, offset: int, size: int) -> int:
        if offset >= 4:
            register = self._register(offset)
            return NOTHING if register is None else self.bridge.read(*register, size)
        if offset == 1 and size == 1:
            return self.reset_port.read(0, 1)
        return self.address if offset == 0 and size == 4 else NOTHING

    def write(self, offset: int, size: int, value: int) -> None:
        if offset >= 4:
            register = self._register(offset)
            if register is not None:
                self.bridge.write(*register, size, value)
        elif offset == 1 and size == 1:
            self.reset_port.write(0, 1, value)
        elif offset == 0 and size == 4:
            self.address = value & self.ADDRESS_BITS
