"""The PC's fixed addresses: where a guest finds what every PC has.

Guest physical memory                       Ports
    0x0000000000  RAM                           0x020 0x0a0  PIC            0x3f8 irq 4   serial 0, the console
    0x00000e0000  ACPI tables                   0x040-0x043  PIT            0x2f8 irq 3   serial 1, the agent
    0x0000100000  RAM                           0x060 0x064  i8042          0x3e8 irq 5   serial 2
    0x00c0000000  hole: devices                 0x061        PIT gate       0x2e8 irq 7   serial 3
    0x00e0000000  PCI configuration space       0x070-0x071  RTC, CMOS      0x402         debug console
    0x00f0000000  PCI devices                   0x0e9        debug console  0x510-0x51b   fw_cfg, with firmware
    0x00feb00000  virtio-mmio                   0x0f4        debug exit     0x600-0x62f   ACPI power management
    0x00fec00000  IOAPIC                                                    0xcf8-0xcff   PCI configuration
    0x00fee00000  LAPIC                                                     0xcf9         reset
    0x00ffc00000  firmware: UEFI's variables and code, or a BIOS's
    0x0100000000  RAM
    above RAM     PCI devices
"""

from __future__ import annotations

ACPI_TABLES = 0xE0000
ACPI_TABLES_END = 0x100000

VIRTIO_MMIO = 0xFEB00000
VIRTIO_MMIO_SIZE = 0x1000
VIRTIO_MMIO_GSIS = (*range(16, 24), 10, 11, 12, 5, 6, 7)
"""The interrupt of each virtio-mmio device: those that nothing else on the board has, so that none is shared."""

IOAPIC = 0xFEC00000
IOAPIC_PINS = 24
LAPIC = 0xFEE00000

PIT_IRQ = 0  # reaches the IOAPIC at pin 2, as on every PC
PIT_IOAPIC_PIN = 2
RTC_IRQ = 8
ACPI_IRQ = 9

SERIAL_PORTS = ((0x3F8, 4), (0x2F8, 3), (0x3E8, 5), (0x2E8, 7))
"""(first port, interrupt) of each 16550; the last two interrupts are free of sharing, unlike ISA's own."""

RTC_PORT = 0x70
CMOS_BOOT_ORDER = 0x3D  # a BIOS reads kinds of disks from here, four bits each, the first lowest
DISK_THEN_CDROM = 0x32
I8042_DATA = 0x60
I8042_COMMAND = 0x64
DEBUG_CONSOLES = (0xE9, 0x402)
DEBUG_EXIT = 0xF4
FW_CFG_PORT = 0x510
RESET_PORT = 0xCF9
RESET_VALUE = 0x06

PM_BASE = 0x600
PM1_EVENT = PM_BASE  # status u16, enable u16
PM1_CONTROL = PM_BASE + 4  # u16
PM_TIMER = PM_BASE + 8  # u32, 3.579545 MHz
GPE0 = PM_BASE + 0x20  # status, then enable, 4 bytes each
GPE0_BYTES = 8
PM_SIZE = 0x30
SLEEP_S5 = 5  # SLP_TYP that the DSDT gives for \\_S5

PCI_CONFIG_PORT = 0xCF8  # address; data at 0xcfc
PCI_ECAM = 0xE0000000
PCI_BUSES = 1
"""One bus. Linux looks at every bus that the MCFG names, 32 accesses each, whether anything can be there or not."""
PCI_ECAM_SIZE = PCI_BUSES << 20
PCI_MMIO = 0xF0000000
PCI_MMIO_END = 0xFEC00000
"""Up to the IOAPIC, from where a BIOS places devices downwards. What virtio-mmio has of it is free on this bus."""
PCI_MMIO64_SIZE = 16 << 30
PCI_IRQS = (20, 21, 22, 23)
"""INTA-INTD of the PCI slots: IOAPIC pins that nothing else uses."""


def pci_mmio64(memory_end: int) -> int:
    """Where the window for 64-bit BARs begins: above RAM, and as low as can be, for guests with few address bits."""
    return -(-memory_end // PCI_MMIO64_SIZE) * PCI_MMIO64_SIZE
