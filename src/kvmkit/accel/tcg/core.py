"""What a software CPU shares with the rest of its machine: interrupt controllers, ports, devices, MSRs, sleep.

Nothing here touches Unicorn but for the CPU's registers; `cpu` puts the two together.

Other threads reach the vCPU through `mutex` and three flags: `attention` (look at the next block boundary),
`kicked`, and the translator's exit counter behind `icount_high`.
"""

import os

import cython
from cython.cimports.kvmkit.accel.tcg.chips import Chips
from cython.cimports.kvmkit.accel.tcg.doorbells import Doorbells
from cython.cimports.kvmkit.accel.tcg.layout import FLAG_IF, HF2_HIF, HF2_VINTR
from cython.cimports.kvmkit.accel.tcg.threads import *
from cython.cimports.kvmkit.bus.space import AddressSpace
from cython.cimports.kvmkit.memory.ram import GuestMemory
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.time import timespec
from cython.cimports.posix.unistd import write

EXIT_NAMES = ("port", "memory", "doorbell", "halt", "interrupt", "exception", "syscall", "msr", "cpuid", "kick")


@cython.cclass
class CpuCore:
    """The machine's side of the one vCPU of a VM."""

    def __cinit__(self, memory: GuestMemory, ports: AddressSpace, mmio: AddressSpace, *rest):
        pthread_mutex_init(cython.address(self.mutex), cython.NULL)
        attributes: pthread_condattr_t
        pthread_condattr_init(cython.address(attributes))
        pthread_condattr_setclock(cython.address(attributes), CLOCK_MONOTONIC_ID)
        pthread_cond_init(cython.address(self.woken), cython.address(attributes))
        pthread_condattr_destroy(cython.address(attributes))
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.index = 0
        self.armed = FOREVER
        for pin in range(PINS):
            self.resample[pin] = -1
        self.memory, self.ports, self.mmio = memory, ports, mmio
        self.chips = Chips()
        self.doorbells = Doorbells()
        self.code_page_count = memory.span // 4096
        self.code_pages = cython.cast(cython.pointer(uint8_t), calloc(self.code_page_count + 1, 1))
        if self.code_pages == cython.NULL:
            raise MemoryError

    def __dealloc__(self):
        free(self.code_pages)
        if self.wake > 2:
            os.close(self.wake)
        pthread_cond_destroy(cython.address(self.woken))
        pthread_mutex_destroy(cython.address(self.mutex))

    # Time.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def ticks(self) -> uint64_t:
        """The guest's TSC, from the translator."""
        return 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def sample(self, tsc: cython.pointer(uint64_t), now: cython.pointer(int64_t)) -> cython.void:
        """The TSC and CLOCK_MONOTONIC of one moment: of some tries, the one in which least time passed between them."""
        best: int64_t = FOREVER
        tries: cython.int = SAMPLES
        while tries:
            tries -= 1
            before: int64_t = monotonic()
            ticks: uint64_t = self.ticks()
            took: int64_t = monotonic() - before
            if took < best:
                best = took
                tsc[0] = ticks
                now[0] = before + took // 2

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def measure_clock(self) -> cython.void:
        """Take the TSC's rate, once: by the time a guest asks, enough has passed since this module was loaded."""
        tsc: uint64_t = 0
        now: int64_t = 0
        self.sample(cython.address(tsc), cython.address(now))
        pthread_mutex_lock(cython.address(self.mutex))
        self.clock.measure(tsc, now)
        # Not by the property: that takes the GIL, which others hold while they wait for the mutex.
        self.chips.lapic.timer.tsc_khz = cython.cast(uint32_t, self.clock.tsc_khz)
        pthread_mutex_unlock(cython.address(self.mutex))

    # Called with the mutex held.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def refresh(self) -> cython.void:
        """The interrupt controllers changed: have the CPU look, if there is something to take."""
        if self.chips.interrupt_pending() or self.chips.lapic.nmi_pending:
            self.wake_up()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def rearm(self) -> cython.void:
        """A timer may be due before the timer thread will look: wake it."""
        if self.chips.deadline() < self.armed:
            self.armed = 0
            one: uint64_t = 1
            write(self.wake, cython.address(one), 8)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def wake_up(self) -> cython.void:
        """Have the CPU come to its next block boundary, or out of its sleep."""
        self.attention = 1
        self.icount_high[0] = 0xFFFF
        if self.sleeping:
            pthread_cond_signal(cython.address(self.woken))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def end_of_interrupt(self) -> cython.void:
        """Tell the owners of level-triggered lines that the guest is done with an interrupt."""
        lines: uint32_t = self.chips.take_eoi()
        if not lines:
            return
        one: uint64_t = 1
        line: cython.int
        for line in range(PINS):
            if lines >> line & 1 and self.resample[line] >= 0:
                write(self.resample[line], cython.address(one), 8)

    # Translated code and writes from outside the CPU.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def written(self, address: uint64_t, length: uint64_t) -> cython.void:
        """A device wrote to RAM: what was translated from there must not run again. Any thread."""
        if length == 0:
            return
        start: uint64_t = self.ram_offset(address)
        end: uint64_t = start + length
        if start >= self.memory.span or end > self.memory.span or end < start:
            return
        page: uint64_t = start >> 12
        while page <= (end - 1) >> 12:
            if self.code_pages[page]:
                pthread_mutex_lock(cython.address(self.mutex))
                if self.stale_count < STALE_RANGES:
                    self.stale[self.stale_count].start = start
                    self.stale[self.stale_count].end = end
                    self.stale_count += 1
                else:  # more than is worth remembering: widen the last one
                    last = cython.address(self.stale[STALE_RANGES - 1])
                    last.start = min(last.start, start)
                    last.end = max(last.end, end)
                self.wake_up()
                pthread_mutex_unlock(cython.address(self.mutex))
                return
            page += 1

    @cython.cfunc
    @cython.inline
    @cython.nogil
    @cython.exceptval(check=False)
    def ram_offset(self, address: uint64_t) -> uint64_t:
        """Where RAM at this guest physical address stands in the memory file, which is how Unicorn numbers it."""
        if address >> 32:
            return address - (cython.cast(uint64_t, 1) << 32) + self.memory.low
        return address

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def wait(self) -> cython.bint:
        """Sleep in HLT until an interrupt can be taken (True) or somebody kicks (False)."""
        until: timespec
        pthread_mutex_lock(cython.address(self.mutex))
        go: cython.bint = False
        while not self.kicked:
            now: int64_t = monotonic()
            self.chips.poll(now)
            # A nested guest may have its host's interrupt flag decide instead of its own.
            hosts: cython.bint = (self.env.hflags2 & HF2_VINTR) != 0
            enabled: cython.bint = self.env.hflags2 & HF2_HIF != 0 if hosts else self.env.eflags & FLAG_IF != 0
            if self.chips.lapic.nmi_pending or (enabled and self.chips.interrupt_pending()):
                go = True
                break
            deadline: int64_t = self.chips.deadline()
            self.sleeping = True
            if deadline == FOREVER:
                pthread_cond_wait(cython.address(self.woken), cython.address(self.mutex))
            elif deadline > now:
                until.tv_sec = deadline // 1000000000
                until.tv_nsec = deadline % 1000000000
                pthread_cond_timedwait(cython.address(self.woken), cython.address(self.mutex), cython.address(until))
            self.sleeping = False
        if go:
            self.attention = 1
        pthread_mutex_unlock(cython.address(self.mutex))
        return go

    def kick(self):
        """Have `run` return KICKED; see VirtualCpu."""
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.mutex))
            self.kicked = 1
            self.wake_up()
            pthread_mutex_unlock(cython.address(self.mutex))

    def exits(self) -> dict:
        """See VirtualCpu."""
        return {name: self.counts[i] for i, name in enumerate(EXIT_NAMES)}


# Ports and memory-mapped devices. The interrupt controllers and doorbells answer without the GIL.


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def maybe_chips(port: uint32_t) -> cython.bint:
    """Whether the PIC or the PIT can stand here: below 0x100, and at 0x4d0 and 0x4d1. Others need no clock."""
    return port < 0x100 or port >> 4 == 0x4D


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def port_read(cpu: CpuCore, port: uint32_t, size: cython.uint) -> uint64_t:
    value: uint32_t = 0
    claimed: cython.bint = False
    if maybe_chips(port):
        pthread_mutex_lock(cython.address(cpu.mutex))
        claimed = cpu.chips.port_read(port, size, cython.address(value), monotonic())
        pthread_mutex_unlock(cython.address(cpu.mutex))
    if claimed:
        return value
    cpu.counts[EXIT_PORT] += 1
    with cython.gil:
        try:
            return cpu.ports.read(port, size)
        except BaseException as error:
            fail(cpu, error)
            return 0xFFFFFFFF


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def port_write(cpu: CpuCore, port: uint32_t, size: cython.uint, value: uint32_t) -> cython.void:
    now: int64_t = monotonic() if maybe_chips(port) else 0
    pthread_mutex_lock(cython.address(cpu.mutex))
    claimed: cython.bint = now and cpu.chips.port_write(port, size, value, now)
    if claimed:
        cpu.refresh()
        cpu.rearm()
    else:
        claimed = cpu.doorbells.ring(True, port, size, value)
        if claimed:
            cpu.counts[EXIT_DOORBELL] += 1
    pthread_mutex_unlock(cython.address(cpu.mutex))
    if claimed:
        return
    cpu.counts[EXIT_PORT] += 1
    with cython.gil:
        try:
            cpu.ports.write(port, size, value)
        except BaseException as error:
            fail(cpu, error)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def memory_read(cpu: CpuCore, address: uint64_t, size: cython.uint) -> uint64_t:
    value: uint64_t = 0
    pthread_mutex_lock(cython.address(cpu.mutex))
    claimed: cython.bint = cpu.chips.mmio_read(address, size, cython.address(value), monotonic())
    pthread_mutex_unlock(cython.address(cpu.mutex))
    if claimed:
        return value
    cpu.counts[EXIT_MEMORY] += 1
    with cython.gil:
        try:
            return cpu.mmio.read(address, size)
        except BaseException as error:
            fail(cpu, error)
            return cython.cast(uint64_t, -1)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def memory_write(cpu: CpuCore, address: uint64_t, size: cython.uint, value: uint64_t) -> cython.void:
    pthread_mutex_lock(cython.address(cpu.mutex))
    claimed: cython.bint = cpu.doorbells.ring(False, address, size, value)
    if claimed:
        cpu.counts[EXIT_DOORBELL] += 1
    else:
        claimed = cpu.chips.mmio_write(address, size, value, monotonic())
        if claimed:
            cpu.end_of_interrupt()
            cpu.refresh()
            cpu.rearm()
    pthread_mutex_unlock(cython.address(cpu.mutex))
    if claimed:
        return
    cpu.counts[EXIT_MEMORY] += 1
    with cython.gil:
        try:
            cpu.mmio.write(address, size, value)
        except BaseException as error:
            fail(cpu, error)


@cython.cfunc
def fail(cpu: CpuCore, error):
    """A device raised: `run` is to raise it again, at the next block boundary."""
    if cpu.failure is None:
        cpu.failure = error
    cpu.kicked = 1
    cpu.attention = 1
    cpu.icount_high[0] = 0xFFFF


# Model-specific registers.


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def read_msr(cpu: CpuCore, msr: uint32_t, value: cython.pointer(uint64_t), tsc: uint64_t) -> cython.bint:
    """One of the MSRs that the machine keeps (`machine_msr`). False: #GP. `tsc` is the guest's now."""
    cpu.counts[EXIT_MSR] += 1
    if msr == 0x10:
        value[0] = tsc
        return True
    now: int64_t = monotonic()
    pthread_mutex_lock(cython.address(cpu.mutex))
    done: cython.bint = cpu.chips.read_msr(msr, value, now) or cpu.clock.read_msr(msr, value)
    pthread_mutex_unlock(cython.address(cpu.mutex))
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def write_msr(cpu: CpuCore, msr: uint32_t, value: uint64_t, tsc: uint64_t) -> cython.bint:
    """The inverse."""
    cpu.counts[EXIT_MSR] += 1
    if cpu.clock.tsc_khz == 0:
        cpu.measure_clock()
    now: int64_t = monotonic()
    pthread_mutex_lock(cython.address(cpu.mutex))
    done: cython.bint = True
    if msr == 0x10:
        cpu.tsc_offset += value - tsc
        cpu.clock.move(value - tsc)
        cpu.chips.lapic.set_tsc(value, now)
    else:
        cpu.chips.lapic.set_tsc(tsc, now)
        done = cpu.chips.write_msr(msr, value, now) or cpu.clock.write_msr(msr, value, tsc, now)
    if done:
        cpu.end_of_interrupt()
        cpu.refresh()
        cpu.rearm()
    pthread_mutex_unlock(cython.address(cpu.mutex))
    return done


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def get_tpr(cpu: CpuCore) -> uint64_t:
    return cpu.chips.lapic.tpr()


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def apic_enabled(cpu: CpuCore) -> cython.bint:
    """Whether CPUID shows a local APIC: not while IA32_APIC_BASE has it off."""
    return cpu.chips.lapic.on


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def wants_attention(cpu: CpuCore) -> cython.bint:
    return cpu.attention != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def get_cr4_bits(cpu: CpuCore) -> uint64_t:
    return cpu.cr4_bits


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def get_tsc_offset(cpu: CpuCore) -> uint64_t:
    return cpu.tsc_offset


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def note_interrupt_instruction(cpu: CpuCore, address: uint64_t) -> cython.void:
    """INT, INT3 or INTO at this offset in CS is about to be delivered."""
    cpu.interrupt_instruction = address


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def interrupt_instruction(cpu: CpuCore) -> uint64_t:
    return cpu.interrupt_instruction


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_tpr(cpu: CpuCore, value: uint64_t) -> cython.void:
    pthread_mutex_lock(cython.address(cpu.mutex))
    cpu.chips.lapic.set_tpr(value)
    cpu.refresh()
    pthread_mutex_unlock(cython.address(cpu.mutex))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def count_exception(cpu: CpuCore) -> cython.void:
    cpu.counts[EXIT_EXCEPTION] += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def count_syscall(cpu: CpuCore) -> cython.void:
    cpu.counts[EXIT_SYSCALL] += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def find_leaf(cpu: CpuCore, leaf: uint32_t, subleaf: uint32_t) -> cython.pointer(CpuidLeaf):
    """What CPUID shows at this leaf; NULL: it is not of the model's table."""
    cpu.counts[EXIT_CPUID] += 1
    i: cython.int
    for i in range(cpu.leaf_count):
        entry = cython.address(cpu.leaves[i])
        if entry.leaf == leaf and (not entry.indexed or entry.subleaf == subleaf):
            return entry
    return cython.NULL


# Pages that hold translated code.


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def has_code(cpu: CpuCore, address: uint64_t) -> cython.bint:
    """Whether code was translated from the page of RAM at this guest physical address."""
    page: uint64_t = cpu.ram_offset(address) >> 12
    return page < cpu.code_page_count and cpu.code_pages[page] != 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_code(cpu: CpuCore, ram: uint64_t, code: cython.bint) -> cython.bint:
    """Remember that the page at this offset in the memory file holds code, or no longer does. False: not RAM."""
    if ram >> 12 >= cpu.code_page_count:
        return False
    cpu.code_pages[ram >> 12] = code
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def physical_of(cpu: CpuCore, ram: uint64_t) -> uint64_t:
    """The guest physical address of an offset in the memory file."""
    return ram if ram < cpu.memory.low else ram - cpu.memory.low + (cython.cast(uint64_t, 1) << 32)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ram_at(cpu: CpuCore, address: uint64_t, length: uint64_t) -> cython.pointer(uint8_t):
    return cpu.memory.pointer(address, length)
