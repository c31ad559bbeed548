# Unicorn 2.1.4's public functions, and those inside it that a whole PC's CPU needs (static library, x86-64 target).
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t, uintptr_t

cdef extern from "unicorn/unicorn.h" nogil:
    ctypedef struct uc_engine
    ctypedef size_t uc_hook
    ctypedef enum uc_err:
        UC_ERR_OK
    int UC_ARCH_X86
    int UC_MODE_64
    int UC_PROT_ALL
    int UC_PROT_READ
    int UC_PROT_EXEC
    int UC_HOOK_INTR
    int UC_HOOK_MEM_WRITE_PROT
    int UC_HOOK_INSN_INVALID
    ctypedef uint64_t (*uc_cb_mmio_read_t)(uc_engine *, uint64_t, unsigned, void *)
    ctypedef void (*uc_cb_mmio_write_t)(uc_engine *, uint64_t, unsigned, uint64_t, void *)
    uc_err uc_open(int arch, int mode, uc_engine **result)
    uc_err uc_close(uc_engine *)
    const char *uc_strerror(uc_err)
    uc_err uc_emu_start(uc_engine *, uint64_t begin, uint64_t until, uint64_t timeout, size_t count)
    uc_err uc_emu_stop(uc_engine *)
    uc_err uc_hook_add(uc_engine *, uc_hook *, int kind, void *callback, void *user, uint64_t begin, uint64_t end, ...)
    uc_err uc_mem_map_ptr(uc_engine *, uint64_t address, size_t size, uint32_t protection, void *host)
    uc_err uc_mem_protect(uc_engine *, uint64_t address, size_t size, uint32_t protection)
    uc_err uc_mmio_map(
        uc_engine *, uint64_t address, size_t size, uc_cb_mmio_read_t, void *, uc_cb_mmio_write_t, void *
    )
    uc_err uc_ctl_exits_enable(uc_engine *)
    uc_err uc_ctl_set_cpu_model(uc_engine *, int)
    uc_err uc_ctl_tlb_mode(uc_engine *, int)
    uc_err uc_reg_write(uc_engine *, int register, const void *value)
    int UC_TLB_CPU
    int UC_X86_REG_RAX
    int UC_X86_REG_CR3
    int UC_X86_REG_DR7
    int UC_X86_REG_FS_BASE
    int UC_CPU_X86_EPYC

# Inside the library. A CPUState is `cs`, a CPUX86State is `env`; neither has a public type.
cdef extern from * nogil:
    """
    #include <stdbool.h>
    #include <stdint.h>
    void x86_cpu_do_interrupt_x86_64(void *cs);
    void do_interrupt_x86_hardirq_x86_64(void *env, int vector, int is_hardware);
    int x86_cpu_pending_interrupt_x86_64(void *cs, int request);
    void cpu_svm_check_intercept_param_x86_64(void *env, uint32_t type, uint64_t param, uintptr_t ra);
    void raise_exception_err_ra_x86_64(void *env, int vector, int code, uintptr_t ra);
    uint32_t cpu_cc_compute_all_x86_64(void *env, int op);
    void x86_update_hflags_x86_64(void *env);
    void update_fp_status_x86_64(void *env);
    void update_mxcsr_status_x86_64(void *env);
    void x86_cpu_xsave_all_areas_x86_64(void *cpu, void *area);
    void x86_cpu_xrstor_all_areas_x86_64(void *cpu, const void *area);
    void tlb_flush_x86_64(void *cs);
    bool cpu_restore_state_x86_64(void *cs, uintptr_t host_pc, bool will_exit);
    void helper_svm_check_io_x86_64(void *env, uint32_t port, uint32_t param, uint32_t next_eip_addend);
    void helper_check_iob_x86_64(void *env, uint32_t port);
    void helper_check_iow_x86_64(void *env, uint32_t port);
    void helper_check_iol_x86_64(void *env, uint32_t port);
    void cpu_loop_exit_x86_64(void *cs);
    void tb_invalidate_phys_range_x86_64(void *uc, uint64_t start, uint64_t end);
    uint64_t x86_cpu_get_phys_page_attrs_debug_x86_64(void *cs, uint64_t address, void *attrs);
    uint64_t cpu_get_tsc_x86_64(void *env);
    bool __real_x86_cpu_exec_interrupt_x86_64(void *cs, int request);
    void __real_helper_raise_interrupt_x86_64(void *env, int vector, int length);
    void __real_raise_interrupt_x86_64(void *env, int vector, int software, int error, int length);
    void __real_raise_exception_err_x86_64(void *env, int vector, int error);
    void __real_do_vmexit_x86_64(void *env, uint32_t code, uint64_t information);
    uint64_t __real_cpu_get_tsc_x86_64(void *env);
    uint32_t cpu_ldub_code_x86_64(void *env, uint64_t address);
    void __real_helper_rdmsr_x86_64(void *env);
    void __real_helper_wrmsr_x86_64(void *env);
    uint64_t __real_helper_read_crN_x86_64(void *env, int reg);
    void __real_helper_write_crN_x86_64(void *env, int reg, uint64_t value);
    void __real_cpu_x86_cpuid_x86_64(void *, uint32_t, uint32_t, uint32_t *, uint32_t *, uint32_t *, uint32_t *);
    void __real_tlb_set_page_with_attrs_x86_64(void *, uint64_t, uint64_t, uint32_t, int, int, uint64_t);
    uint32_t __real_x86_ldl_phys_x86_64(void *cs, uint64_t address);
    uint64_t __real_x86_ldq_phys_x86_64(void *cs, uint64_t address);
    """
    void deliver_exception "x86_cpu_do_interrupt_x86_64"(void *cs)
    void deliver_interrupt "do_interrupt_x86_hardirq_x86_64"(void *env, int vector, int is_hardware)
    int pending_interrupt "x86_cpu_pending_interrupt_x86_64"(void *cs, int request)
    void svm_intercept "cpu_svm_check_intercept_param_x86_64"(void *env, uint32_t kind, uint64_t param, uintptr_t ra)
    void raise_exception "raise_exception_err_ra_x86_64"(void *env, int vector, int code, uintptr_t ra)
    uint32_t condition_flags "cpu_cc_compute_all_x86_64"(void *env, int op)
    void update_hflags "x86_update_hflags_x86_64"(void *env)
    void update_fp_status "update_fp_status_x86_64"(void *env)
    void update_mxcsr_status "update_mxcsr_status_x86_64"(void *env)
    void save_xsave_area "x86_cpu_xsave_all_areas_x86_64"(void *cpu, void *area)
    void load_xsave_area "x86_cpu_xrstor_all_areas_x86_64"(void *cpu, const void *area)
    void tlb_flush "tlb_flush_x86_64"(void *cs)
    bint restore_state "cpu_restore_state_x86_64"(void *cs, uintptr_t host_pc, bint will_exit)
    void svm_check_port "helper_svm_check_io_x86_64"(void *env, uint32_t port, uint32_t information, uint32_t length)
    void check_port8 "helper_check_iob_x86_64"(void *env, uint32_t port)
    void check_port16 "helper_check_iow_x86_64"(void *env, uint32_t port)
    void check_port32 "helper_check_iol_x86_64"(void *env, uint32_t port)
    void *return_address "__builtin_return_address"(int)
    void leave_block "cpu_loop_exit_x86_64"(void *cs)
    void invalidate_code "tb_invalidate_phys_range_x86_64"(void *uc, uint64_t start, uint64_t end)
    uint64_t walk_page "x86_cpu_get_phys_page_attrs_debug_x86_64"(void *cs, uint64_t address, void *attrs)
    uint64_t read_tsc "cpu_get_tsc_x86_64"(void *env)
    bint real_exec_interrupt "__real_x86_cpu_exec_interrupt_x86_64"(void *cs, int request)
    void real_raise_interrupt "__real_helper_raise_interrupt_x86_64"(void *env, int vector, int length)
    void real_raise_software "__real_raise_interrupt_x86_64"(void *env, int vector, int software, int error, int length)
    void real_raise_error "__real_raise_exception_err_x86_64"(void *env, int vector, int error)
    void real_vmexit "__real_do_vmexit_x86_64"(void *env, uint32_t code, uint64_t information)
    uint64_t host_ticks "__real_cpu_get_tsc_x86_64"(void *env)
    uint32_t code_byte "cpu_ldub_code_x86_64"(void *env, uint64_t address)
    void real_rdmsr "__real_helper_rdmsr_x86_64"(void *env)
    void real_wrmsr "__real_helper_wrmsr_x86_64"(void *env)
    uint64_t real_read_cr "__real_helper_read_crN_x86_64"(void *env, int reg)
    void real_write_cr "__real_helper_write_crN_x86_64"(void *env, int reg, uint64_t value)
    void real_cpuid "__real_cpu_x86_cpuid_x86_64"(
        void *env, uint32_t leaf, uint32_t subleaf, uint32_t *a, uint32_t *b, uint32_t *c, uint32_t *d
    )
    void real_set_page "__real_tlb_set_page_with_attrs_x86_64"(
        void *cs, uint64_t address, uint64_t physical, uint32_t attributes, int protection, int mmu, uint64_t size
    )
    uint32_t real_load32 "__real_x86_ldl_phys_x86_64"(void *cs, uint64_t address)
    uint64_t real_load64 "__real_x86_ldq_phys_x86_64"(void *cs, uint64_t address)
