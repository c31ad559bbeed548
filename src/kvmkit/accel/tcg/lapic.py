"""The local APIC of a vCPU on the software CPU: xAPIC by MMIO, x2APIC by MSRs.

There is one vCPU, so messages to others go nowhere. State is KVM's register page (struct kvm_lapic_state).
Source: Intel SDM volume 3, "Advanced Programmable Interrupt Controller".
"""

import struct
from time import monotonic_ns

import cython
from cython.cimports.kvmkit.accel.tcg.apic_timer import TSC_DEADLINE, ApicTimer
from cython.cimports.libc.stdint import INT64_MAX, int64_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset

from kvmkit.errors import BadInput

PAGE_BYTES = 1024
LAYOUT = struct.Struct("<" + "I12x" * 64)

ALL = cython.declare(uint32_t, 0xFFFFFFFF)
TOP_BYTE = cython.declare(uint32_t, 0xFF000000)
LEGAL_VECTORS = cython.declare(uint32_t, 0xFFFF0000)  # of the first 32: the processor keeps 0 to 15 for itself
BASE = cython.declare(uint32_t, 0xFEE00000)
MASKED = cython.declare(uint32_t, 0x10000)
LEVEL = cython.declare(uint32_t, 0x8000)
SOFTWARE_ENABLE = cython.declare(uint32_t, 0x100)
X2APIC_ENABLE = cython.declare(uint32_t, 0x400)
GLOBAL_ENABLE = cython.declare(uint32_t, 0x800)
BOOT_PROCESSOR = cython.declare(uint32_t, 0x100)
# Version 0x14 with six local vectors, and no suppression of EOI broadcasts: KVM's.
VERSION_VALUE = cython.declare(uint32_t, 0x50014)
# Bits of the error status register.
SEND_ILLEGAL_VECTOR = cython.declare(uint32_t, 0x20)
RECEIVE_ILLEGAL_VECTOR = cython.declare(uint32_t, 0x40)
ILLEGAL_REGISTER = cython.declare(uint32_t, 0x80)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def lvt_bits(index: cython.int) -> uint32_t:
    """The bits of a local vector table entry that can be written."""
    if index == LVT_TIMER:
        return 0x700FF
    if index in (LVT_LINT0, LVT_LINT1):
        return 0x1A7FF
    if index == LVT_ERROR:
        return 0x100FF
    return 0x107FF


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def divisor(value: uint32_t) -> uint32_t:
    """What the divide configuration register says: 2, 4, ... 128, 1."""
    return cython.cast(uint32_t, 1) << ((((value & 3) | (value >> 1 & 4)) + 1) & 7)


@cython.final
@cython.cclass
class Lapic:
    """Registers, priorities and the timer. `now` is CLOCK_MONOTONIC in ns; callers hold one lock around every call.

    The CPU sets `physical_bits` (MAXPHYADDR) and `x2apic_allowed` from its CPUID, and calls `set_tsc`. `nmi_pending`
    is set here and cleared by the CPU. `rejected`: a message came while the APIC was disabled; its sender may retry.
    """

    def __cinit__(self, apic_id: cython.uint = 0):
        if apic_id > 254:
            raise BadInput(f"APIC id {apic_id} does not fit xAPIC mode; give 0 to 254")
        self.apic_id = apic_id
        self.physical_bits = 40
        self.x2apic_allowed = True
        self.tsc_offset = 0
        self.timer = ApicTimer()
        self.reset()

    @property
    def tsc_khz(self) -> uint32_t:
        """The guest's TSC frequency in kHz; 0: unknown, and TSC deadlines never come."""
        return self.timer.tsc_khz

    @tsc_khz.setter
    def tsc_khz(self, value: uint32_t):
        self.timer.tsc_khz = value
        self.timer.set_tsc(self.timer.tsc, self.timer.tsc_time)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def reset(self) -> cython.void:
        """Power-up state, in xAPIC mode."""
        self.nmi_pending = False
        self.rejected = False
        self.enter(BASE | GLOBAL_ENABLE | (BOOT_PROCESSOR if self.apic_id == 0 else 0))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def enter(self, base: uint64_t) -> cython.void:
        """Take `base` and the register values of a reset."""
        index: cython.int
        memset(self.regs, 0, cython.sizeof(self.regs))
        self.errors = 0
        self.apic_base = base
        self.regs[ID] = self.apic_id << 24
        self.regs[VERSION] = VERSION_VALUE
        self.regs[DFR] = ALL
        self.regs[SVR] = 0xFF
        for index in range(LVT_TIMER, LVT_ERROR + 1):
            self.regs[index] = MASKED
        if base & BOOT_PROCESSOR:
            # Firmware leaves the PIC connected (virtual wire mode); a kernel started without firmware expects that too.
            self.regs[LVT_LINT0] = EXTINT << 8
        self.timer.reset()
        self.in_service = -1
        self.follow()

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def set_tsc(self, tsc: uint64_t, now: int64_t) -> cython.void:
        """The guest's TSC is `tsc` at `now`: what TSC deadlines are reckoned from. A recent pair is a better one."""
        self.timer.set_tsc(tsc, now)

    # What follows from the registers

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def highest(self, first: cython.int) -> cython.int:
        """The highest vector set in the eight registers from `first`, or -1."""
        word: cython.int
        for word in range(7, -1, -1):
            if self.regs[first + word]:
                return word * 32 + 31 - __builtin_clz(self.regs[first + word])
        return -1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def refresh(self) -> cython.void:
        """Find PPR and what can be delivered, after a change of TPR, IRR, ISR or a mode."""
        priority: uint32_t = self.regs[TPR]
        if self.in_service >= 0 and cython.cast(uint32_t, self.in_service) & 0xF0 > priority & 0xF0:
            priority = cython.cast(uint32_t, self.in_service) & 0xF0
        self.processor_priority = priority
        self.best = -1
        if self.enabled:
            vector: cython.int = self.highest(IRR)
            if vector >= 0 and cython.cast(uint32_t, vector) & 0xF0 > priority & 0xF0:
                self.best = vector

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def follow(self) -> cython.void:
        """Find the modes anew, after a change of the base, SVR or LVT LINT0."""
        self.on = (self.apic_base & GLOBAL_ENABLE) != 0
        self.x2apic = self.on and (self.apic_base & X2APIC_ENABLE) != 0
        self.enabled = self.on and (self.regs[SVR] & SOFTWARE_ENABLE) != 0
        # Without a local APIC the PIC's output is the processor's INTR pin.
        self.extint = not self.on or self.regs[LVT_LINT0] & (MASKED | 0x700) == EXTINT << 8
        self.refresh()

    # Registers

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def readable(self, index: cython.int) -> cython.bint:
        if ISR <= index <= ESR or ICR <= index <= CURRENT_COUNT:
            return index != ICR_HIGH or not self.x2apic
        if index in (APR, RRD, DFR):
            return not self.x2apic
        return index in (ID, VERSION, TPR, PPR, LDR, SVR, DIVIDE)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def value(self, index: cython.int, now: int64_t) -> uint32_t:
        if index == PPR:
            return self.processor_priority
        if index == CURRENT_COUNT:
            return self.timer.remaining(now)
        if index == INITIAL_COUNT:
            return self.timer.initial
        if index == ID and self.x2apic:
            return self.apic_id
        return self.regs[index]

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def read(self, offset: uint32_t, now: int64_t) -> uint32_t:
        """The 32 bits at `offset` of the xAPIC page; 0 where there is nothing."""
        if offset & 0xC or offset >= REGISTERS * 16:
            return 0
        if not self.readable(offset >> 4):
            self.error(ILLEGAL_REGISTER)
            return 0
        return self.value(offset >> 4, now)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def write(self, offset: uint32_t, value: uint32_t, now: int64_t) -> cython.int:
        """Take a 32-bit write to the xAPIC page. -1, or the level-triggered vector that this ended."""
        ended: cython.int = -1
        if offset & 0xF or offset >= REGISTERS * 16:
            return -1
        if not self.store(offset >> 4, value, now, cython.address(ended)):
            self.error(ILLEGAL_REGISTER)
        return ended

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def store(self, index: cython.int, value: uint32_t, now: int64_t, ended: cython.pointer(cython.int)) -> cython.bint:
        """Write a register, except what x2APIC mode changes about it. False: it can't be written."""
        entry: cython.int
        if index == EOI:
            ended[0] = self.end()
        elif index == TPR:
            self.regs[TPR] = value & 0xFF
            self.refresh()
        elif index == ICR:
            self.regs[ICR] = value & 0xCCFFF
            self.send(value, self.regs[ICR_HIGH] >> 24)
        elif index == ICR_HIGH:
            self.regs[ICR_HIGH] = value & TOP_BYTE
        elif index == INITIAL_COUNT:
            self.timer.arm(value, now)
        elif index == DIVIDE:
            self.regs[DIVIDE] = value & 0xB
            self.timer.set_divide(divisor(value), now)
        elif LVT_TIMER <= index <= LVT_ERROR:
            self.store_lvt(index, value, now)
        elif index == SVR:
            self.regs[SVR] = value & 0x3FF
            if not value & SOFTWARE_ENABLE:
                for entry in range(LVT_TIMER, LVT_ERROR + 1):
                    self.store_lvt(entry, self.regs[entry] | MASKED, now)
            self.follow()
        elif index == ESR:
            self.regs[ESR] = self.errors  # the write is what shows the errors gathered since the last one
            self.errors = 0
        elif index == ID:
            self.regs[ID] = value & TOP_BYTE
        elif index == LDR:
            self.regs[LDR] = value & TOP_BYTE
        elif index == DFR:
            self.regs[DFR] = value | 0x0FFFFFFF
        else:
            return self.readable(index)  # a write to a read-only register is lost, not an error
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def store_lvt(self, index: cython.int, value: uint32_t, now: int64_t) -> cython.void:
        value &= lvt_bits(index)
        if not self.regs[SVR] & SOFTWARE_ENABLE:
            value |= MASKED
        if index == LVT_TIMER:
            self.poll(now)  # what expired until now did so under the old entry
            self.timer.set_mode(value >> 17 & 3, now)
        self.regs[index] = value
        if index == LVT_LINT0:
            self.follow()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def error(self, bit: uint32_t) -> cython.void:
        self.errors |= bit
        entry: uint32_t = self.regs[LVT_ERROR]
        # An illegal vector in this entry itself would be the next error, without end.
        if not entry & MASKED and entry & 0xF0:
            self.accept(entry & 0xFF, False)

    # MSRs

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_msr(self, msr: uint32_t, value: cython.pointer(uint64_t), now: int64_t) -> cython.bint:
        """IA32_APIC_BASE, IA32_TSC_DEADLINE and the x2APIC range. False: #GP."""
        if msr == 0x1B:
            value[0] = self.apic_base
        elif msr == 0x6E0:
            value[0] = self.timer.tsc_deadline if self.timer.mode == TSC_DEADLINE else 0
        else:
            if not self.x2apic or msr < 0x800 or msr >= 0x800 + REGISTERS or not self.readable(msr - 0x800):
                return False
            value[0] = self.value(msr - 0x800, now)
            if msr == 0x800 + ICR:
                value[0] |= cython.cast(uint64_t, self.regs[ICR_HIGH]) << 32
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write_msr(self, msr: uint32_t, value: uint64_t, now: int64_t, eoi: cython.pointer(cython.int)) -> cython.bint:
        """The inverse; False: #GP. `eoi` gets -1, or the level-triggered vector that this ended.

        Before a write of IA32_TSC_DEADLINE (0x6e0), `set_tsc` makes the deadline exact.
        """
        eoi[0] = -1
        if msr == 0x1B:
            return self.set_base(value)
        if msr == 0x6E0:
            if self.timer.mode == TSC_DEADLINE:
                self.timer.set_deadline(value)
                self.poll(now)
            return True
        if not self.x2apic or msr < 0x800 or msr >= 0x800 + REGISTERS:
            return False
        index: cython.int = msr - 0x800
        if self.reserved(index, value):
            return False
        if index == SELF_IPI:
            self.send(0x40000 | cython.cast(uint32_t, value), 0)
        elif index == ICR:
            self.regs[ICR] = cython.cast(uint32_t, value) & 0xCCFFF
            self.regs[ICR_HIGH] = value >> 32
            self.send(cython.cast(uint32_t, value), value >> 32)
        else:
            return self.store(index, cython.cast(uint32_t, value), now, eoi)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def reserved(self, index: cython.int, value: uint64_t) -> cython.bint:
        """Whether writing `value` in x2APIC mode is a #GP: a register that is read-only, or a reserved bit."""
        allowed: uint64_t
        if index in (EOI, ESR):
            allowed = 0
        elif index in (TPR, SELF_IPI):
            allowed = 0xFF
        elif index == SVR:
            allowed = 0x3FF
        elif index == ICR:
            allowed = (cython.cast(uint64_t, ALL) << 32) | 0xCDFFF
        elif LVT_TIMER <= index <= LVT_ERROR:
            allowed = lvt_bits(index) | 0x5000  # delivery status and remote IRR are read-only, not reserved
        elif index == INITIAL_COUNT:
            allowed = ALL
        elif index == DIVIDE:
            allowed = 0xB
        else:
            return True
        return value & ~allowed != 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_base(self, value: uint64_t) -> cython.bint:
        """A guest's write to IA32_APIC_BASE. False: a reserved bit, or a step between modes that does not exist."""
        bits: cython.uint = min(max(self.physical_bits, 32), 52)
        if value & 0x2FF or value >> bits:
            return False
        on: cython.bint = (value & GLOBAL_ENABLE) != 0
        x2apic: cython.bint = (value & X2APIC_ENABLE) != 0
        if x2apic and (not on or not self.on or not self.x2apic_allowed):
            return False
        if self.x2apic and on and not x2apic:
            return False
        if self.on and not on:
            self.enter(value)
        else:
            self.restore_base(value)
        return True

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def restore_base(self, value: uint64_t) -> cython.bint:
        """Take a saved IA32_APIC_BASE, whatever the mode was. False, and nothing changes: no such mode."""
        if value & X2APIC_ENABLE and not value & GLOBAL_ENABLE:
            return False
        self.apic_base = value & ((cython.cast(uint64_t, 0xFFFFFFF) << 24 | 0xFFF000) | 0xD00)
        self.follow()
        if self.x2apic:
            self.regs[ID] = self.apic_id << 24
            self.regs[LDR] = (self.apic_id >> 4 << 16) | (cython.cast(uint32_t, 1) << (self.apic_id & 15))
            self.regs[DFR] = ALL
        return True

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def restore_tsc_deadline(self, value: uint64_t) -> cython.void:
        """Take a saved IA32_TSC_DEADLINE, before or after the register page."""
        self.timer.set_deadline(value)

    # Messages and lines

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def send(self, command: uint32_t, destination: uint32_t) -> cython.void:
        """An interprocessor interrupt. INIT and start-up messages can only be meant for others: there are none."""
        shorthand: cython.int = command >> 18 & 3
        mode: cython.int = command >> 8 & 7
        if mode <= LOWEST and command & 0xF0 == 0:
            self.error(SEND_ILLEGAL_VECTOR)
            return
        if shorthand == 3 or (shorthand == 0 and not self.matches(destination, (command >> 11 & 1) != 0)):
            return
        self.deliver(mode, command & 0xFF, False)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def accept(self, vector: cython.int, level: cython.bint) -> cython.bint:
        """Note an interrupt in IRR, and in TMR how it is triggered. False: the APIC is disabled or the vector illegal.

        A second message for a vector in IRR is lost in the first, as on the processor.
        """
        if not self.enabled:
            self.rejected = True
            return False
        if vector < 16 or vector > 255:
            self.error(RECEIVE_ILLEGAL_VECTOR)
            return False
        word: cython.int = vector >> 5
        bit: uint32_t = cython.cast(uint32_t, 1) << (vector & 31)
        if level:
            self.regs[TMR + word] |= bit
        else:
            self.regs[TMR + word] &= ~bit
        self.regs[IRR + word] |= bit
        if vector & 0xF0 > cython.cast(cython.int, self.processor_priority & 0xF0) and vector > self.best:
            self.best = vector
        return True

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def matches(self, destination: uint32_t, logical: cython.bint) -> cython.bint:
        """Whether a message to `destination` (8 bits, 32 in x2APIC mode) is for this APIC."""
        if not self.on:
            return False
        if self.x2apic:
            if destination == ALL:
                return True
            if not logical:
                return destination == self.apic_id
            return destination >> 16 == self.regs[LDR] >> 16 and destination & self.regs[LDR] & 0xFFFF != 0
        if destination == 0xFF:
            return True
        if not logical:
            return destination == self.regs[ID] >> 24
        name: uint32_t = self.regs[LDR] >> 24
        if self.regs[DFR] >> 28 == 0xF:
            return destination & name != 0
        return destination >> 4 == name >> 4 and destination & name & 0xF != 0

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def deliver(self, mode: cython.int, vector: cython.int, level: cython.bint) -> cython.bint:
        """Take a message of delivery mode `mode`. False: not taken."""
        if mode <= LOWEST:
            return self.accept(vector, level)
        if mode == NMI:
            self.nmi_pending = True
            return True
        return False  # there is no SMM, nobody to start, and ExtINT comes from the PIC alone

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def message(
        self, destination: uint32_t, logical: cython.bint, mode: cython.int, vector: cython.int, level: cython.bint
    ) -> cython.bint:
        """A message with an 8-bit destination, from the IOAPIC or a device. False: not for this APIC, or not taken."""
        if self.x2apic and destination == 0xFF:
            destination = ALL
        return self.matches(destination, logical) and self.deliver(mode, vector, level)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def lint(self, pin: cython.int) -> cython.void:
        """A rising edge at LINT0 (where the PIC is) or LINT1. ExtINT is not noted: `accepts_extint` tells of it."""
        entry: uint32_t = self.regs[LVT_LINT1 if pin else LVT_LINT0]
        if self.on and not entry & MASKED:
            self.deliver(entry >> 8 & 7, entry & 0xFF, False)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def accepts_extint(self) -> cython.bint:
        """Whether the PIC's output reaches the processor."""
        return self.extint

    # The processor's side

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def pending(self) -> cython.int:
        """The vector that can be delivered now, or -1."""
        return self.best

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def acknowledge(self) -> cython.int:
        """Move the pending vector from IRR to ISR and return it; the spurious vector when there is none."""
        vector: cython.int = self.best
        if vector < 0:
            return self.regs[SVR] & 0xFF
        bit: uint32_t = cython.cast(uint32_t, 1) << (vector & 31)
        self.regs[IRR + (vector >> 5)] &= ~bit
        self.regs[ISR + (vector >> 5)] |= bit
        self.in_service = vector
        self.refresh()
        return vector

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def end(self) -> cython.int:
        """End the highest interrupt in service. Its vector if it was level-triggered, for the IOAPIC; else -1."""
        vector: cython.int = self.in_service
        if vector < 0:
            return -1
        bit: uint32_t = cython.cast(uint32_t, 1) << (vector & 31)
        self.regs[ISR + (vector >> 5)] &= ~bit
        self.in_service = self.highest(ISR)
        self.refresh()
        return vector if self.regs[TMR + (vector >> 5)] & bit else -1

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def tpr(self) -> uint64_t:
        """CR8: the task priority's class, 0 to 15."""
        return self.regs[TPR] >> 4

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def set_tpr(self, value: uint64_t) -> cython.void:
        self.regs[TPR] = cython.cast(uint32_t, value & 15) << 4
        self.refresh()

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def deadline(self) -> int64_t:
        """When `poll` has something to do next. Never, while the timer's entry is masked: nobody would notice."""
        return INT64_MAX if self.regs[LVT_TIMER] & MASKED else self.timer.expiry

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def poll(self, now: int64_t) -> cython.void:
        """Deliver the timer's interrupt if it expired by `now`."""
        if self.timer.due(now) and not self.regs[LVT_TIMER] & MASKED:
            self.accept(self.regs[LVT_TIMER] & 0xFF, False)

    # Python's side

    def rdmsr(self, msr: uint32_t, now: int64_t):
        """The value of an MSR, or None for #GP."""
        value: uint64_t = 0
        return value if self.read_msr(msr, cython.address(value), now) else None

    def wrmsr(self, msr: uint32_t, value: uint64_t, now: int64_t):
        """Write an MSR. None for #GP; else -1, or the level-triggered vector that this ended."""
        ended: cython.int = -1
        return ended if self.write_msr(msr, value, now, cython.address(ended)) else None

    def state(self, now=None) -> bytes:
        """struct kvm_lapic_state: 1024 bytes of registers. The base and the TSC deadline are MSRs beside it."""
        index: cython.int
        when: int64_t = monotonic_ns() if now is None else now
        return LAYOUT.pack(*[self.value(index, when) if index != ID else self.regs[ID] for index in range(REGISTERS)])

    def restore(self, data: bytes, now=None) -> None:
        """Take a saved register page; the base comes first. Bits that can't be set are dropped. Raises BadInput."""
        index: cython.int
        when: int64_t = monotonic_ns() if now is None else now
        if len(data) != PAGE_BYTES:
            raise BadInput(f"LAPIC state of {len(data)} bytes; it must be {PAGE_BYTES}")
        regs: tuple = LAYOUT.unpack(data)
        timer_mode: cython.int = regs[LVT_TIMER] >> 17 & 3
        deadline: uint64_t = self.timer.tsc_deadline
        self.enter(self.apic_base)
        for index in range(8):
            self.regs[ISR + index] = regs[ISR + index]
            self.regs[TMR + index] = regs[TMR + index]
            self.regs[IRR + index] = regs[IRR + index]
        for index in (ISR, TMR, IRR):
            self.regs[index] &= LEGAL_VECTORS
        for index in range(LVT_TIMER, LVT_ERROR + 1):
            self.regs[index] = regs[index] & lvt_bits(index)
        self.regs[TPR] = regs[TPR] & 0xFF
        self.regs[SVR] = regs[SVR] & 0x3FF
        self.regs[ESR] = regs[ESR] & 0xFF
        self.regs[ICR] = regs[ICR] & 0xCCFFF
        self.regs[DIVIDE] = regs[DIVIDE] & 0xB
        if self.x2apic:
            self.regs[ICR_HIGH] = regs[ICR_HIGH]
        else:
            self.regs[ID] = regs[ID] & TOP_BYTE
            self.regs[LDR] = regs[LDR] & TOP_BYTE
            self.regs[DFR] = regs[DFR] | 0x0FFFFFFF
            self.regs[ICR_HIGH] = regs[ICR_HIGH] & TOP_BYTE
        self.timer.tsc_deadline = deadline
        self.timer.restore(timer_mode, divisor(regs[DIVIDE]), regs[INITIAL_COUNT], regs[CURRENT_COUNT], when)
        self.in_service = self.highest(ISR)
        self.restore_base(self.apic_base)
