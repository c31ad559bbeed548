from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from kvmkit.accel.tcg.chips cimport Chips
from kvmkit.accel.tcg.doorbells cimport Doorbells
from kvmkit.accel.tcg.layout cimport Env
from kvmkit.accel.tcg.pvclock cimport PvClock
from kvmkit.accel.tcg.threads cimport pthread_cond_t, pthread_mutex_t
from kvmkit.bus.space cimport AddressSpace
from kvmkit.memory.ram cimport GuestMemory

cdef enum:
    EXIT_PORT
    EXIT_MEMORY
    EXIT_DOORBELL
    EXIT_HALT
    EXIT_INTERRUPT
    EXIT_EXCEPTION
    EXIT_SYSCALL
    EXIT_MSR
    EXIT_CPUID
    EXIT_KICK
    EXIT_KINDS

cdef enum:
    STALE_RANGES = 64
    LEAVES = 64
    SAMPLES = 5
    PINS = 24

cdef struct CpuidLeaf:
    uint32_t leaf
    uint32_t subleaf
    bint indexed  # the subleaf counts
    uint32_t registers[4]  # eax ebx ecx edx

cdef struct StaleRange:
    uint64_t start
    uint64_t end

# A function that takes a CpuCore, called with a borrowed pointer to one: no reference counts without the GIL.
ctypedef uint64_t (*read_function)(void *, uint64_t, unsigned int) noexcept nogil
ctypedef void (*write_function)(void *, uint64_t, unsigned int, uint64_t) noexcept nogil
ctypedef uint64_t (*port_read_function)(void *, uint32_t, unsigned int) noexcept nogil
ctypedef void (*port_write_function)(void *, uint32_t, unsigned int, uint32_t) noexcept nogil
ctypedef bint (*interrupt_function)(void *, void *, int) noexcept nogil
ctypedef void (*count_function)(void *) noexcept nogil
ctypedef bint (*read_msr_function)(void *, uint32_t, uint64_t *, uint64_t) noexcept nogil
ctypedef bint (*write_msr_function)(void *, uint32_t, uint64_t, uint64_t) noexcept nogil
ctypedef uint64_t (*get_function)(void *) noexcept nogil
ctypedef bint (*is_function)(void *) noexcept nogil
ctypedef void (*set_function)(void *, uint64_t) noexcept nogil
ctypedef CpuidLeaf *(*cpuid_function)(void *, uint32_t, uint32_t) noexcept nogil
ctypedef bint (*has_code_function)(void *, uint64_t) noexcept nogil
ctypedef bint (*set_code_function)(void *, uint64_t, bint) noexcept nogil
ctypedef uint64_t (*physical_function)(void *, uint64_t) noexcept nogil
ctypedef uint8_t *(*ram_function)(void *, uint64_t, uint64_t) noexcept nogil

cdef enum:
    FOREVER = 0x7FFFFFFFFFFFFFFF

cdef class CpuCore:
    cdef Env *env
    cdef uint16_t *icount_high
    cdef volatile int attention  # look at interrupts, kicks and stale code at the next block
    cdef volatile int kicked
    cdef bint halted
    cdef bint sleeping
    cdef volatile int64_t armed  # when the timer thread will look next
    cdef readonly int wake
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t woken
    cdef Chips chips
    cdef Doorbells doorbells
    cdef PvClock clock
    cdef AddressSpace ports
    cdef AddressSpace mmio
    cdef GuestMemory memory
    cdef uint8_t *code_pages
    cdef uint64_t code_page_count
    cdef StaleRange stale[STALE_RANGES]
    cdef int stale_count
    cdef uint64_t counts[EXIT_KINDS]
    cdef CpuidLeaf leaves[LEAVES]
    cdef int leaf_count
    cdef uint64_t cr4_bits  # those of the model's features; the others are reserved
    cdef uint64_t tsc_offset  # guest TSC = the host's + this
    cdef uint64_t interrupt_instruction  # where the INT being delivered stands
    cdef object failure
    cdef readonly int index
    cdef int resample[PINS]  # eventfds to signal at the end of a level-triggered interrupt, -1: none

    cdef uint64_t ticks(self) noexcept nogil
    cdef void sample(self, uint64_t *tsc, int64_t *now) noexcept nogil
    cdef void measure_clock(self) noexcept nogil
    cdef void refresh(self) noexcept nogil
    cdef void rearm(self) noexcept nogil
    cdef void wake_up(self) noexcept nogil
    cdef void end_of_interrupt(self) noexcept nogil
    cdef uint64_t ram_offset(self, uint64_t address) noexcept nogil
    cdef bint wait(self) noexcept nogil
    cdef void written(self, uint64_t address, uint64_t length) noexcept nogil

cdef uint64_t port_read(CpuCore cpu, uint32_t port, unsigned int size) noexcept nogil
cdef void port_write(CpuCore cpu, uint32_t port, unsigned int size, uint32_t value) noexcept nogil
cdef uint64_t memory_read(CpuCore cpu, uint64_t address, unsigned int size) noexcept nogil
cdef void memory_write(CpuCore cpu, uint64_t address, unsigned int size, uint64_t value) noexcept nogil
cdef fail(CpuCore cpu, error)
cdef bint read_msr(CpuCore cpu, uint32_t msr, uint64_t *value, uint64_t tsc) noexcept nogil
cdef bint write_msr(CpuCore cpu, uint32_t msr, uint64_t value, uint64_t tsc) noexcept nogil
cdef uint64_t get_tpr(CpuCore cpu) noexcept nogil
cdef bint apic_enabled(CpuCore cpu) noexcept nogil
cdef bint wants_attention(CpuCore cpu) noexcept nogil
cdef uint64_t get_cr4_bits(CpuCore cpu) noexcept nogil
cdef uint64_t get_tsc_offset(CpuCore cpu) noexcept nogil
cdef void note_interrupt_instruction(CpuCore cpu, uint64_t address) noexcept nogil
cdef uint64_t interrupt_instruction(CpuCore cpu) noexcept nogil
cdef void set_tpr(CpuCore cpu, uint64_t value) noexcept nogil
cdef void count_exception(CpuCore cpu) noexcept nogil
cdef void count_syscall(CpuCore cpu) noexcept nogil
cdef CpuidLeaf *find_leaf(CpuCore cpu, uint32_t leaf, uint32_t subleaf) noexcept nogil
cdef bint has_code(CpuCore cpu, uint64_t address) noexcept nogil
cdef bint set_code(CpuCore cpu, uint64_t ram, bint code) noexcept nogil
cdef uint64_t physical_of(CpuCore cpu, uint64_t ram) noexcept nogil
cdef uint8_t *ram_at(CpuCore cpu, uint64_t address, uint64_t length) noexcept nogil
