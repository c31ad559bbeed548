from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvmkit.accel.tcg.unicorn cimport uc_engine
from kvmkit.accel.tcg.vcpu_state cimport CpuState

cdef enum:
    PHYSICAL_BITS = 40

# What a hypercall returns that we don't have, and one of a program: -KVM_ENOSYS, -KVM_EPERM.
cdef enum:
    HYPERCALL_UNKNOWN = -1000
    HYPERCALL_REFUSED = -1

# Exit codes of AMD's SVM.
cdef enum:
    SVM_EXIT_WRITE_CR = 0x10
    SVM_EXIT_INTR = 0x60
    SVM_EXIT_NMI = 0x61
    SVM_EXIT_IOIO = 0x7B
    SVM_EXIT_MSR = 0x7C

# What `loop` came back with; Unicorn's own error numbers negated.
cdef enum:
    STOPPED = 0
    TRIPLE_FAULT = 1

ctypedef uint8_t *(*region_function)(uc_engine *, uint64_t) noexcept nogil

cdef struct MmioWindow:
    void *cpu
    uint64_t base

cdef class TcgCpu(CpuState):
    cdef uc_engine *uc
    cdef void *cs
    cdef MmioWindow windows[2]

    cdef int loop(self) noexcept nogil
    cdef void drop_stale(self) noexcept nogil
    cdef calibrate(self)
    cdef map_memory(self)
    cdef become(self, str model)
    cdef set_words(self, words)

# What the linker puts in the place of Unicorn's own functions; the list stands in setup.py too.
cdef public bint __wrap_x86_cpu_exec_interrupt_x86_64(void *cs, int request) noexcept nogil
cdef public void __wrap_helper_rdmsr_x86_64(void *env) noexcept nogil
cdef public void __wrap_helper_wrmsr_x86_64(void *env) noexcept nogil
cdef public uint64_t __wrap_helper_read_crN_x86_64(void *env, int reg) noexcept nogil
cdef public void __wrap_helper_write_crN_x86_64(void *env, int reg, uint64_t value) noexcept nogil
cdef public void __wrap_helper_raise_interrupt_x86_64(void *env, int vector, int length) noexcept nogil
cdef public void __wrap_raise_interrupt_x86_64(void *env, int vector, int software, int error, int length) noexcept nogil
cdef public void __wrap_raise_exception_err_x86_64(void *env, int vector, int error) noexcept nogil
cdef public void __wrap_do_vmexit_x86_64(void *env, uint32_t code, uint64_t information) noexcept nogil
cdef public uint64_t __wrap_helper_read_eflags_x86_64(void *env) noexcept nogil
cdef public uint64_t __wrap_cpu_get_tsc_x86_64(void *env) noexcept nogil
cdef public void __wrap_helper_pause_x86_64(void *env, int length) noexcept nogil
cdef public void __wrap_helper_syscall_x86_64(void *env, int length) noexcept nogil
cdef public void __wrap_helper_sysenter_x86_64(void *env, int length) noexcept nogil
cdef public uint64_t __wrap_helper_inb_x86_64(void *env, uint32_t port) noexcept nogil
cdef public uint64_t __wrap_helper_inw_x86_64(void *env, uint32_t port) noexcept nogil
cdef public uint64_t __wrap_helper_inl_x86_64(void *env, uint32_t port) noexcept nogil
cdef public void __wrap_helper_outb_x86_64(void *env, uint32_t port, uint32_t value) noexcept nogil
cdef public void __wrap_helper_outw_x86_64(void *env, uint32_t port, uint32_t value) noexcept nogil
cdef public void __wrap_helper_outl_x86_64(void *env, uint32_t port, uint32_t value) noexcept nogil
cdef public void __wrap_cpu_x86_cpuid_x86_64(
    void *env, uint32_t leaf, uint32_t subleaf, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d
) noexcept nogil
cdef public void __wrap_tlb_protect_code_x86_64(void *uc, uint64_t ram) noexcept nogil
cdef public void __wrap_tlb_unprotect_code_x86_64(void *uc, uint64_t ram) noexcept nogil
cdef public void __wrap_tlb_reset_dirty_by_vaddr_x86_64(void *cs, uint64_t start, uint64_t length) noexcept nogil
cdef public void __wrap_tlb_set_page_with_attrs_x86_64(
    void *cs, uint64_t address, uint64_t physical, uint32_t attributes, int protection, int mmu, uint64_t size
) noexcept nogil
cdef public uint32_t __wrap_x86_ldl_phys_x86_64(void *cs, uint64_t address) noexcept nogil
cdef public uint64_t __wrap_x86_ldq_phys_x86_64(void *cs, uint64_t address) noexcept nogil
