"""The I/O APIC: 24 pins, each with a redirection entry that says which message it sends to the local APIC.

State is KVM's struct kvm_ioapic_state. Polarity is not looked at: a line here is raised or not, whatever the voltage.
Source: Intel 82093AA data sheet.
"""

import struct

import cython
from cython.cimports.kvmkit.accel.tcg.lapic import EXTINT, LOWEST, Lapic
from cython.cimports.libc.stdint import uint32_t, uint64_t

from kvmkit.errors import BadInput

ADDRESS = 0xFEC00000
LAYOUT = struct.Struct("<Q4I24Q")

# 24 entries, version 0x11 as KVM's: no EOI register.
VERSION_VALUE = cython.declare(uint32_t, 0x170011)
READ_ONLY = cython.declare(uint32_t, 0x5000)
REMOTE_IRR = cython.declare(uint32_t, 0x4000)
LEVEL = cython.declare(uint32_t, 0x8000)
MASKED = cython.declare(uint32_t, 0x10000)
ENTRY_LOW = cython.declare(uint32_t, 0x1FFFF)
DESTINATION = cython.declare(uint64_t, cython.cast(uint64_t, 0xFF) << 56)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def level_triggered(entry: uint64_t) -> cython.bint:
    """Only fixed and lowest-priority messages have levels; an NMI is an edge, whatever its entry says."""
    return entry & LEVEL != 0 and (entry >> 8 & 7) <= LOWEST


@cython.final
@cython.cclass
class Ioapic:
    """Pins and their entries. `resample`: pins whose line falls by itself at EOI, because an eventfd raised it.

    `lines` are the pins that are up. `extint`: pin 0 passes the PIC's output on, as boot firmware sometimes sets it.
    """

    def __cinit__(self, lapic: Lapic):
        self.lapic = lapic
        self.resample = 0
        self.reset()

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def reset(self) -> cython.void:
        """Every pin masked. The lines stay as their devices have them."""
        pin: cython.int
        self.selected = 0
        self.id = 0
        for pin in range(PINS):
            self.entries[pin] = MASKED
        self.follow()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def follow(self) -> cython.void:
        self.extint = cython.cast(uint32_t, self.entries[0]) & (MASKED | 0x700) == EXTINT << 8

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def read(self, offset: uint32_t) -> uint32_t:
        """IOREGSEL at 0, IOWIN at 0x10; 0 elsewhere."""
        if offset == 0:
            return self.selected
        if offset != 0x10:
            return 0
        index: uint32_t = self.selected
        if index == 0 or index == 2:  # 2: the arbitration id, which follows the id
            return self.id << 24
        if index == 1:
            return VERSION_VALUE
        if 0x10 <= index < 0x10 + 2 * PINS:
            entry: uint64_t = self.entries[(index - 0x10) >> 1]
            return cython.cast(uint32_t, entry >> 32 if index & 1 else entry)
        return 0

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def write(self, offset: uint32_t, value: uint32_t) -> cython.void:
        """The inverse of `read`; what is read-only stays as it is."""
        if offset == 0:
            self.selected = value & 0xFF
        elif offset == 0x10:
            if self.selected == 0:
                self.id = value >> 24 & 15
            elif 0x10 <= self.selected < 0x10 + 2 * PINS:
                self.store(self.selected - 0x10, value)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def store(self, index: uint32_t, value: uint32_t) -> cython.void:
        """Write half a redirection entry."""
        pin: cython.int = index >> 1
        entry: uint64_t = self.entries[pin]
        if index & 1:
            entry = (entry & ENTRY_LOW) | ((cython.cast(uint64_t, value) << 32) & DESTINATION)
        else:
            entry = (entry & DESTINATION) | (entry & READ_ONLY) | (value & ENTRY_LOW & ~READ_ONLY)
            if not value & LEVEL:
                # Kernels end an interrupt of an IOAPIC without an EOI register by a detour through edge mode.
                entry &= ~cython.cast(uint64_t, REMOTE_IRR)
        self.entries[pin] = entry
        self.follow()
        if level_triggered(entry) and self.lines >> pin & 1:
            self.service(pin)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def service(self, pin: cython.int) -> cython.bint:
        """Send the message of a pin that is up, unless it is masked or its last one has not been ended."""
        entry: uint64_t = self.entries[pin]
        level: cython.bint = level_triggered(entry)
        if entry & MASKED or (level and entry & REMOTE_IRR):
            return False
        if not self.lapic.message(entry >> 56, entry >> 11 & 1, entry >> 8 & 7, entry & 0xFF, level):
            return False
        if level:
            self.entries[pin] |= REMOTE_IRR
        return True

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def set_line(self, pin: cython.uint, level: cython.bint) -> cython.void:
        """Raise or lower a pin. A pin that does not exist is nobody's. An edge at a masked pin is lost."""
        if pin >= PINS:
            return
        bit: uint32_t = cython.cast(uint32_t, 1) << pin
        rose: cython.bint = level and not self.lines & bit
        if level:
            self.lines |= bit
        else:
            self.lines &= ~bit
        if rose or (level and level_triggered(self.entries[pin])):
            self.service(pin)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def eoi(self, vector: cython.int) -> uint32_t:
        """The local APIC ended level-triggered `vector`. The pins that meant it; those still up send it again."""
        pin: cython.int
        ended: uint32_t = 0
        for pin in range(PINS):
            entry: uint64_t = self.entries[pin]
            if entry & REMOTE_IRR and cython.cast(cython.int, entry & 0xFF) == vector:
                self.entries[pin] = entry & ~cython.cast(uint64_t, REMOTE_IRR)
                ended |= cython.cast(uint32_t, 1) << pin
        self.lines &= ~(ended & self.resample)
        for pin in range(PINS):
            if ended & self.lines & (cython.cast(uint32_t, 1) << pin):
                self.service(pin)
        return ended

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def retry(self) -> cython.void:
        """Send again what the local APIC rejected, now that it is enabled. Only a level persists."""
        pin: cython.int
        for pin in range(PINS):
            if self.lines >> pin & 1 and level_triggered(self.entries[pin]):
                self.service(pin)

    def state(self) -> bytes:
        """struct kvm_ioapic_state, 216 bytes. As in KVM, `irr` holds no edges that have been sent."""
        pin: cython.int
        levels: uint32_t = 0
        for pin in range(PINS):
            if level_triggered(self.entries[pin]):
                levels |= cython.cast(uint32_t, 1) << pin
        entries = [self.entries[pin] for pin in range(PINS)]
        return LAYOUT.pack(ADDRESS, self.selected, self.id, self.lines & levels, 0, *entries)

    def restore(self, data: bytes) -> None:
        """Take saved state; lines that were up are up again. Raises BadInput."""
        pin: cython.int
        if len(data) != LAYOUT.size:
            raise BadInput(f"IOAPIC state of {len(data)} bytes; it must be {LAYOUT.size}")
        _, selected, apic_id, irr, _, *entries = LAYOUT.unpack(data)
        self.selected = selected & 0xFF
        self.id = apic_id & 15
        self.lines = 0
        for pin in range(PINS):
            entry: uint64_t = entries[pin]
            entry &= DESTINATION | ENTRY_LOW & ~cython.cast(uint64_t, 0x1000)
            if not entry & LEVEL:
                entry &= ~cython.cast(uint64_t, REMOTE_IRR)
            self.entries[pin] = entry
        self.follow()
        for pin in range(PINS):
            if irr >> pin & 1:
                self.set_line(pin, True)
