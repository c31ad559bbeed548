from libc.stdint cimport int64_t, uint32_t, uint64_t

from kvmkit.accel.tcg.apic_timer cimport ApicTimer

cdef extern from *:
    int __builtin_clz(unsigned int) noexcept nogil

# Registers by number: the MMIO offset over 16, the x2APIC MSR less 0x800.
cdef enum:
    ID = 0x02
    VERSION = 0x03
    TPR = 0x08
    APR = 0x09
    PPR = 0x0a
    EOI = 0x0b
    RRD = 0x0c
    LDR = 0x0d
    DFR = 0x0e
    SVR = 0x0f
    ISR = 0x10  # eight, as TMR and IRR
    TMR = 0x18
    IRR = 0x20
    ESR = 0x28
    ICR = 0x30
    ICR_HIGH = 0x31
    LVT_TIMER = 0x32
    LVT_THERMAL = 0x33
    LVT_COUNTERS = 0x34
    LVT_LINT0 = 0x35
    LVT_LINT1 = 0x36
    LVT_ERROR = 0x37
    INITIAL_COUNT = 0x38
    CURRENT_COUNT = 0x39
    DIVIDE = 0x3e
    SELF_IPI = 0x3f
    REGISTERS = 0x40

cdef enum:
    FIXED = 0
    LOWEST = 1
    NMI = 4
    EXTINT = 7

cdef class Lapic:
    # Written by `write_msr` and `restore_base` only: `enabled`, `x2apic` and `best` follow from it.
    cdef readonly uint64_t apic_base
    cdef public bint nmi_pending
    cdef public bint x2apic_allowed
    cdef public unsigned int physical_bits
    cdef public int64_t tsc_offset
    cdef readonly uint32_t apic_id
    # What follows from the registers, kept so that the CPU's question at every block is one load.
    cdef readonly bint on
    cdef readonly bint x2apic
    cdef readonly bint enabled
    cdef readonly bint extint
    cdef readonly int best
    cdef public bint rejected
    cdef int in_service
    cdef uint32_t processor_priority
    cdef uint32_t errors
    cdef uint32_t regs[64]
    cdef ApicTimer timer

    cpdef void reset(self) noexcept nogil
    cpdef void set_tsc(self, uint64_t tsc, int64_t now) noexcept nogil
    cpdef uint32_t read(self, uint32_t offset, int64_t now) noexcept nogil
    cpdef int write(self, uint32_t offset, uint32_t value, int64_t now) noexcept nogil
    cdef bint read_msr(self, uint32_t msr, uint64_t *value, int64_t now) noexcept nogil
    cdef bint write_msr(self, uint32_t msr, uint64_t value, int64_t now, int *eoi) noexcept nogil
    cpdef bint restore_base(self, uint64_t value) noexcept nogil
    cpdef void restore_tsc_deadline(self, uint64_t value) noexcept nogil
    cpdef bint accept(self, int vector, bint level) noexcept nogil
    cpdef bint matches(self, uint32_t destination, bint logical) noexcept nogil
    cpdef bint deliver(self, int mode, int vector, bint level) noexcept nogil
    cpdef bint message(self, uint32_t destination, bint logical, int mode, int vector, bint level) noexcept nogil
    cpdef int pending(self) noexcept nogil
    cpdef int acknowledge(self) noexcept nogil
    cpdef int end(self) noexcept nogil
    cpdef bint accepts_extint(self) noexcept nogil
    cpdef void lint(self, int pin) noexcept nogil
    cpdef uint64_t tpr(self) noexcept nogil
    cpdef void set_tpr(self, uint64_t value) noexcept nogil
    cpdef int64_t deadline(self) noexcept nogil
    cpdef void poll(self, int64_t now) noexcept nogil

    cdef uint32_t value(self, int index, int64_t now) noexcept nogil
    cdef bint readable(self, int index) noexcept nogil
    cdef bint store(self, int index, uint32_t value, int64_t now, int *eoi) noexcept nogil
    cdef void store_lvt(self, int index, uint32_t value, int64_t now) noexcept nogil
    cdef bint reserved(self, int index, uint64_t value) noexcept nogil
    cdef void send(self, uint32_t command, uint32_t destination) noexcept nogil
    cdef bint set_base(self, uint64_t value) noexcept nogil
    cdef void enter(self, uint64_t base) noexcept nogil
    cdef void error(self, uint32_t bit) noexcept nogil
    cdef int highest(self, int first) noexcept nogil
    cdef void refresh(self) noexcept nogil
    cdef void follow(self) noexcept nogil
