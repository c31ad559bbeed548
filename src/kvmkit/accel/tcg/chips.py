"""A PC's interrupt controllers and timer as one, wired as KVM wires its own.

GSIs 0 to 15 reach the PIC and the IOAPIC, 16 to 23 the IOAPIC alone; GSI 0 (the PIT) arrives at the IOAPIC's pin 2.
"""

import struct
from time import monotonic_ns

import cython
from cython.cimports.kvmkit.accel.tcg.ioapic import Ioapic
from cython.cimports.kvmkit.accel.tcg.lapic import Lapic
from cython.cimports.kvmkit.accel.tcg.pic import Pic
from cython.cimports.kvmkit.accel.tcg.pit import Pit
from cython.cimports.libc.stdint import int64_t, uint16_t, uint32_t, uint64_t

from kvmkit.errors import BadInput

IRQCHIP = struct.Struct("<II512s")
CHIP_IDS = {"pic_master": 0, "pic_slave": 1, "ioapic": 2}
CHIP_BYTES = {"pic_master": 16, "pic_slave": 16, "ioapic": 216}

IOAPIC_ADDRESS = cython.declare(uint32_t, 0xFEC00000)
IOAPIC_BYTES = cython.declare(uint32_t, 0x100)
LAPIC_BYTES = cython.declare(uint32_t, 0x1000)
NOT_A_BYTE = cython.declare(uint32_t, 0xFFFFFF00)
IOAPIC_PINS = cython.declare(uint32_t, 24)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def narrow(value: uint64_t, offset: uint64_t, size: cython.uint) -> uint64_t:
    """The `size` bytes at `offset` of a 32-bit register that lies at a multiple of four."""
    value >>= (offset & 3) * 8
    return value if size >= 8 else value & ((cython.cast(uint64_t, 1) << (size * 8)) - 1)


@cython.final
@cython.cclass
class Chips:
    """The four chips, and the ways in and out of them. `now`: CLOCK_MONOTONIC in ns. Callers hold one lock."""

    def __cinit__(self, apic_id: cython.uint = 0):
        self.lapic = Lapic(apic_id)
        self.ioapic = Ioapic(self.lapic)
        self.pic = Pic()
        self.pit = Pit()
        self.resample = 0
        self.ended = 0
        self.wire = False

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def reset(self) -> cython.void:
        """A machine reset. Lines fall at the PIC; devices raise theirs anew."""
        self.lapic.reset()
        self.ioapic.reset()
        self.pic.reset()
        self.pit.reset()
        self.ended = 0
        self.wire = False

    # Interrupts in

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def set_resample(self, gsis: uint32_t) -> cython.void:
        """Which GSIs (a bit each) fall by themselves at EOI, because an eventfd raised them; see `take_eoi`."""
        self.resample = gsis
        self.ioapic.resample = (gsis & ~cython.cast(uint32_t, 5)) | (gsis << 2 & 4)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def set_irq(self, gsi: cython.uint, level: cython.bint) -> cython.void:
        """Raise or lower interrupt line `gsi`. What is not 0 to 23, or is the PIC's cascade (2), is no line."""
        if gsi == 2 or gsi >= IOAPIC_PINS:
            return
        if gsi < 16:
            self.pic.set_line(gsi, level)
            self.follow()
        self.ioapic.set_line(gsi if gsi else 2, level)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def signal_msi(self, address: uint64_t, data: uint32_t) -> cython.bint:
        """A message-signalled interrupt. False: the address is not the local APICs', or none took it.

        Source: Intel SDM volume 3, "Message Signalled Interrupts". The redirection hint picks among several
        processors; there is one.
        """
        if address >> 20 != 0xFEE:
            return False
        destination: uint32_t = address >> 12 & 0xFF
        logical: cython.bint = address >> 2 & 1
        level: cython.bint = data >> 14 & 3 == 3
        return self.lapic.message(destination, logical, data >> 8 & 7, data & 0xFF, level)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def follow(self) -> cython.void:
        """Carry the PIC's output to LINT0, and its ended interrupts to those who want to know."""
        ended: uint32_t = self.pic.take_ended()
        if ended:
            self.told(ended)
        if self.pic.intr and not self.wire:
            self.lapic.lint(0)
        self.wire = self.pic.intr

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def told(self, gsis: uint32_t) -> cython.void:
        """Interrupts of these GSIs have been ended."""
        gsi: cython.uint
        self.ended |= gsis
        for gsi in range(IOAPIC_PINS):
            if gsis & self.resample & (cython.cast(uint32_t, 1) << gsi):
                self.set_irq(gsi, False)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def end(self, vector: cython.int) -> cython.void:
        """The local APIC's EOI broadcast, and a second try for what it rejected before it was enabled."""
        if vector >= 0:
            pins: uint32_t = self.ioapic.eoi(vector)
            if pins:
                self.told((pins & ~cython.cast(uint32_t, 5)) | (pins >> 2 & 1))
        if self.lapic.rejected and self.lapic.enabled:
            self.lapic.rejected = False
            self.ioapic.retry()

    # The processor's side

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def interrupt_pending(self) -> cython.bint:
        """Whether the processor has an interrupt to take once it can. Three loads when there is none."""
        return self.lapic.best >= 0 or (self.pic.intr and (self.lapic.extint or self.ioapic.extint))

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def acknowledge(self) -> cython.int:
        """The vector of the interrupt the processor takes now, the PIC's first; -1: there is none."""
        if self.pic.intr and (self.lapic.extint or self.ioapic.extint):
            vector: cython.int = self.pic.acknowledge()
            self.wire = False  # the output falls while the processor acknowledges
            self.follow()
            return vector
        return self.lapic.acknowledge() if self.lapic.best >= 0 else -1

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def deadline(self) -> int64_t:
        """When `poll` has something to do next; INT64_MAX: never, as things are."""
        return min(self.lapic.deadline(), self.pit.deadline())

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def poll(self, now: int64_t) -> cython.void:
        """Let the timers interrupt that expired by `now`."""
        self.lapic.poll(now)
        if self.pit.poll(now):
            self.set_irq(0, True)
            self.set_irq(0, False)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def take_eoi(self) -> uint32_t:
        """The GSIs (a bit each) that have been ended since the last call: whose resample eventfds to signal."""
        ended: uint32_t = self.ended
        self.ended = 0
        return ended

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def port_read(
        self, port: uint16_t, size: cython.uint, value: cython.pointer(uint32_t), now: int64_t
    ) -> cython.bint:
        """Read a port of the PIC or PIT. False: not one of theirs. They are 8 bits wide; the rest reads as ones."""
        if self.pit.claims(port):
            value[0] = self.pit.read(port, now)
        elif self.pic.claims(port):
            value[0] = self.pic.read(port)
            self.follow()
        else:
            return False
        if size > 1:
            value[0] |= NOT_A_BYTE if size > 2 else 0xFF00
        return True

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def port_write(self, port: uint16_t, size: cython.uint, value: uint32_t, now: int64_t) -> cython.bint:
        """Write a port of the PIC or PIT. False: not one of theirs. A word goes to two ports, as on the bus."""
        if self.pit.claims(port):
            self.poll(now)  # an edge of the old count is not lost with it
            self.pit.write(port, value & 0xFF, now)
        elif self.pic.claims(port):
            self.pic.write(port, value & 0xFF)
            self.follow()
        else:
            return False
        if size > 1 and port != 0xFFFF:
            self.port_write(port + 1, size - 1, value >> 8, now)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def mmio_read(
        self, address: uint64_t, size: cython.uint, value: cython.pointer(uint64_t), now: int64_t
    ) -> cython.bint:
        """Read the IOAPIC or the local APIC's page. False: neither is there."""
        offset: uint64_t = address - IOAPIC_ADDRESS
        if offset < IOAPIC_BYTES:
            value[0] = narrow(self.ioapic.read(offset & ~cython.cast(uint64_t, 3)), offset, size)
            return True
        offset = address - (self.lapic.apic_base & ~cython.cast(uint64_t, 0xFFF))
        if offset >= LAPIC_BYTES or not self.lapic.on or self.lapic.x2apic:
            return False
        value[0] = narrow(self.lapic.read(offset & ~cython.cast(uint64_t, 3), now), offset, size)
        return True

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def mmio_write(self, address: uint64_t, size: cython.uint, value: uint64_t, now: int64_t) -> cython.bint:
        """The inverse. The local APIC takes whole registers only; other writes to its page vanish."""
        offset: uint64_t = address - IOAPIC_ADDRESS
        if offset < IOAPIC_BYTES:
            self.ioapic.write(offset, cython.cast(uint32_t, narrow(value, 0, min(size, 4))))
            return True
        offset = address - (self.lapic.apic_base & ~cython.cast(uint64_t, 0xFFF))
        if offset >= LAPIC_BYTES or not self.lapic.on or self.lapic.x2apic:
            return False
        if size >= 4:
            self.end(self.lapic.write(offset, cython.cast(uint32_t, value), now))
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_msr(self, msr: uint32_t, value: cython.pointer(uint64_t), now: int64_t) -> cython.bint:
        """The local APIC's MSRs: 0x1b, 0x6e0, 0x800 to 0x8ff. False: #GP."""
        return self.lapic.read_msr(msr, value, now)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def write_msr(self, msr: uint32_t, value: uint64_t, now: int64_t) -> cython.bint:
        """The inverse, with what an EOI means to the IOAPIC. False: #GP."""
        ended: cython.int = -1
        if not self.lapic.write_msr(msr, value, now, cython.address(ended)):
            return False
        self.end(ended)
        return True

    # Python's side

    def read_port(self, port: uint16_t, size: cython.uint, now: int64_t):
        """What a port reads as, or None when no chip has it."""
        value: uint32_t = 0
        return value if self.port_read(port, size, cython.address(value), now) else None

    def read_mmio(self, address: uint64_t, size: cython.uint, now: int64_t):
        """What an address reads as, or None when no chip is there."""
        value: uint64_t = 0
        return value if self.mmio_read(address, size, cython.address(value), now) else None

    def get(self, name: str, now=None) -> bytes:
        """State in KVM's format: "lapic", "ioapic", "pic_master", "pic_slave" or "pit". Raises KeyError."""
        if now is None:
            now = monotonic_ns()
        if name == "lapic":
            return self.lapic.state(now)
        if name == "pit":
            return self.pit.state(now)
        chip = CHIP_IDS[name]
        return IRQCHIP.pack(chip, 0, self.ioapic.state() if chip == 2 else self.pic.state(chip))

    def set(self, name: str, data: bytes, now=None) -> None:
        """The inverse; `lapic.restore_base` comes before "lapic". Raises KeyError and BadInput."""
        if now is None:
            now = monotonic_ns()
        if name == "lapic":
            self.lapic.restore(data, now)
        elif name == "pit":
            self.pit.restore(data, now)
        else:
            chip = CHIP_IDS[name]
            if len(data) != IRQCHIP.size:
                raise BadInput(f"{name} state of {len(data)} bytes; it must be {IRQCHIP.size}")
            kind, _, body = IRQCHIP.unpack(data)
            if kind != chip:
                raise BadInput(f"{name} state is of interrupt controller {kind}; it must be {chip}")
            if chip == 2:
                self.ioapic.restore(body[: CHIP_BYTES[name]])
            else:
                self.pic.restore(chip, body[: CHIP_BYTES[name]])
                self.pic.take_ended()
        self.wire = self.pic.intr
