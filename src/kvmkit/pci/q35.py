"""Intel's Q35 chip set, as much of it as UEFI firmware wants to see: its host bridge, and the bridge to old devices.

Firmware tells it by its numbers, puts configuration space where it likes (PCIEXBAR), and looks for the ACPI timer and
the serial ports behind the bridge to the LPC bus. Source: Intel 3 Series Express Chipset Family data sheet, 5.1.12
(PCIEXBAR); Intel ICH9 data sheet, 13.1 (LPC interface); OvmfPkg/Library/PlatformInitLib of EDK II.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmkit.bus import AddressSpace, pc

from .bridge import HostBridge, Window
from .config import Identity
from .function import Function

if TYPE_CHECKING:
    from kvmkit.accel import VirtualMachine
    from kvmkit.memory import GuestMemory

MCH = Identity(vendor=0x8086, device=0x29C0, class_code=0x060000, subsystem_vendor=0x1AF4, subsystem=0x1100)
LPC = Identity(vendor=0x8086, device=0x2918, class_code=0x060100, revision=2, subsystem_vendor=0x1AF4, subsystem=0x1100)
LPC_SLOT = 31

PCIEXBAR = 0x60
PCIEXBAR_BITS = 0xF_FC00_0007
PCIEXBAR_BASE = 0xF_FC00_0000
PCIEXBAR_ON = 1
PCIEXBAR_SIZES = {0: 256 << 20, 2: 128 << 20, 4: 64 << 20}

WIDEST_ADDRESS = 52
"""Bits of any x86's guest physical addresses."""

PM_BASE, ACPI_CONTROL = 0x40, 0x44
PM_BASE_IS_IO, ACPI_ON = 1, 0x80
PIRQ_ROUTES = (0x60, 0x61, 0x62, 0x63, 0x68, 0x69, 0x6A, 0x6B)
PIRQ_OFF = 0x80
RCBA = 0xF0
RCBA_BITS = 0xFFFFC001


class Q35(HostBridge):
    """A host bridge whose configuration space is where the guest says; its devices' registers begin behind that."""

    def __init__(self, vm: VirtualMachine, memory: GuestMemory, mmio: AddressSpace) -> None:
        super().__init__(vm, memory, mmio, MCH)
        self._ram = memory.low
        self.window64 = Window(self.window64.start, 1 << WIDEST_ADDRESS)
        self._at = 0
        config = self.functions[0].config
        config.put(PCIEXBAR, 8, 0, PCIEXBAR_BITS)
        config.watch(PCIEXBAR, 8, after_write=self._moved)
        self.add(_lpc(), LPC_SLOT)

    def _add_ecam(self) -> None:
        pass  # off until the guest has said where

    def described(self) -> tuple[Window, Window]:
        """What firmware has made of them: it uses some part of the addresses above RAM."""
        with self.lock:
            placed = [
                (function.config.bar_address(bar), bar.size)
                for function in self.functions.values()
                for bar in function.config.bars
                if bar.wide and self.window64.holds(function.config.bar_address(bar), bar.size)
            ]
        start = min((address for address, _ in placed), default=self.window64.start) // pc.PCI_MMIO64_SIZE
        end = -(-max((address + size for address, size in placed), default=0) // pc.PCI_MMIO64_SIZE)
        return self.window, Window(start * pc.PCI_MMIO64_SIZE, max(end, start + 1) * pc.PCI_MMIO64_SIZE)

    def _moved(self, offset: int, size: int) -> None:
        value = self.functions[0].config.get(PCIEXBAR, 8)
        bytes_ = PCIEXBAR_SIZES.get(value & 6, 0)
        at = value & PCIEXBAR_BASE & -bytes_ if value & PCIEXBAR_ON and bytes_ else 0
        if at == self._at:
            return
        if self._at:
            self.mmio.remove(self._at)
        fits = at >= self._ram and at + bytes_ < pc.PCI_MMIO_END and self.mmio.free_at(at, bytes_)
        self._at = at if fits else 0
        if self._at:
            self.mmio.add(self._at, bytes_, self.ecam)
            self.config_space = self._at
            self.window = Window(self._at + bytes_, pc.PCI_MMIO_END)
        self.remap()


def _lpc() -> Function:
    """The bridge behind which are the serial ports, the clock and power management: those are where they always are."""
    function = Function("LPC bridge", LPC, express=False)
    config = function.config
    config.put(PM_BASE, 4, pc.PM_BASE | PM_BASE_IS_IO)
    config.put(ACPI_CONTROL, 1, ACPI_ON)
    for route in PIRQ_ROUTES:
        config.put(route, 1, PIRQ_OFF, 0xFF)
    config.put(RCBA, 4, 0, RCBA_BITS)
    return function
