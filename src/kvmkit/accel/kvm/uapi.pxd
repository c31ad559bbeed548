# KVM's interface as <linux/kvm.h> has it: the C compiler takes every number and layout from that header.
# A structure is declared with only the members that are used here.

from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t

cdef extern from "<sys/ioctl.h>" nogil:
    int ioctl(int fd, unsigned long request, ...)

cdef extern from "<signal.h>" nogil:
    ctypedef struct sigset_t:
        pass
    struct sigaction_t "sigaction":
        void (*sa_handler)(int) noexcept nogil
        sigset_t sa_mask
        int sa_flags
    int SIG_UNBLOCK
    int SIGRTMIN
    int install_action "sigaction"(int number, sigaction_t *action, sigaction_t *old)
    int sigemptyset(sigset_t *signals)
    int sigaddset(sigset_t *signals, int number)
    int pthread_sigmask(int how, sigset_t *signals, sigset_t *old)

cdef extern from "<pthread.h>" nogil:
    ctypedef unsigned long pthread_t
    pthread_t pthread_self()
    int pthread_kill(pthread_t thread, int number)

cdef extern from "<linux/kvm.h>" nogil:
    # The system
    unsigned long KVM_GET_API_VERSION
    unsigned long KVM_CREATE_VM
    unsigned long KVM_CHECK_EXTENSION
    unsigned long KVM_GET_VCPU_MMAP_SIZE
    unsigned long KVM_GET_SUPPORTED_CPUID
    unsigned long KVM_GET_MSR_INDEX_LIST

    int KVM_CAP_IRQCHIP, KVM_CAP_USER_MEMORY, KVM_CAP_SET_TSS_ADDR, KVM_CAP_EXT_CPUID, KVM_CAP_MP_STATE
    int KVM_CAP_IRQ_ROUTING, KVM_CAP_IRQFD, KVM_CAP_IRQFD_RESAMPLE, KVM_CAP_PIT2, KVM_CAP_PIT_STATE2
    int KVM_CAP_IOEVENTFD, KVM_CAP_IOEVENTFD_ANY_LENGTH, KVM_CAP_SET_IDENTITY_MAP_ADDR, KVM_CAP_ADJUST_CLOCK
    int KVM_CAP_VCPU_EVENTS, KVM_CAP_DEBUGREGS, KVM_CAP_XSAVE, KVM_CAP_XSAVE2, KVM_CAP_XCRS, KVM_CAP_SIGNAL_MSI
    int KVM_CAP_TSC_DEADLINE_TIMER, KVM_CAP_MAX_VCPUS, KVM_CAP_X2APIC_API, KVM_CAP_IMMEDIATE_EXIT
    int KVM_CAP_READONLY_MEM, KVM_CAP_X86_SMM, KVM_CAP_NESTED_STATE, KVM_CAP_SPLIT_IRQCHIP, KVM_CAP_TSC_CONTROL
    int KVM_CAP_DIRTY_LOG_RING, KVM_CAP_SYNC_REGS, KVM_CAP_NR_MEMSLOTS

    struct kvm_cpuid_entry2:
        uint32_t function, index, flags, eax, ebx, ecx, edx
        uint32_t padding[3]
    struct kvm_cpuid2:
        uint32_t nent
        kvm_cpuid_entry2 *entries
    struct kvm_msr_list:
        uint32_t nmsrs
        uint32_t *indices
    uint32_t KVM_CPUID_FLAG_SIGNIFCANT_INDEX

    # A VM
    unsigned long KVM_SET_TSS_ADDR
    unsigned long KVM_SET_IDENTITY_MAP_ADDR
    unsigned long KVM_CREATE_IRQCHIP
    unsigned long KVM_CREATE_PIT2
    unsigned long KVM_CREATE_VCPU
    unsigned long KVM_ENABLE_CAP
    unsigned long KVM_SET_USER_MEMORY_REGION
    unsigned long KVM_SET_GSI_ROUTING
    unsigned long KVM_IRQ_LINE
    unsigned long KVM_IRQFD
    unsigned long KVM_IOEVENTFD
    unsigned long KVM_SIGNAL_MSI
    unsigned long KVM_GET_IRQCHIP
    unsigned long KVM_SET_IRQCHIP
    unsigned long KVM_GET_PIT2
    unsigned long KVM_SET_PIT2
    unsigned long KVM_GET_CLOCK
    unsigned long KVM_SET_CLOCK

    struct kvm_pit_config:
        uint32_t flags
    uint32_t KVM_PIT_SPEAKER_DUMMY
    struct kvm_enable_cap:
        uint32_t cap
        uint64_t args[4]
    uint64_t KVM_X2APIC_API_USE_32BIT_IDS
    struct kvm_userspace_memory_region:
        uint32_t slot, flags
        uint64_t guest_phys_addr, memory_size, userspace_addr
    uint32_t KVM_MEM_READONLY
    struct kvm_irq_level:
        uint32_t irq, level
    uint32_t KVM_IRQCHIP_PIC_MASTER
    uint32_t KVM_IRQCHIP_PIC_SLAVE
    uint32_t KVM_IRQCHIP_IOAPIC
    uint32_t KVM_IRQ_ROUTING_IRQCHIP
    uint32_t KVM_IRQ_ROUTING_MSI
    struct kvm_irq_routing_irqchip:
        uint32_t irqchip, pin
    struct kvm_irq_routing_msi:
        uint32_t address_lo, address_hi, data
    union routing_target:  # never named in C: a member without a tag
        kvm_irq_routing_irqchip irqchip
        kvm_irq_routing_msi msi
    struct kvm_irq_routing_entry:
        uint32_t gsi, type, flags
        routing_target u
    struct kvm_irq_routing:
        uint32_t nr, flags
        kvm_irq_routing_entry *entries
    struct kvm_irqfd:
        uint32_t fd, gsi, flags, resamplefd
    uint32_t KVM_IRQFD_FLAG_DEASSIGN
    uint32_t KVM_IRQFD_FLAG_RESAMPLE
    struct kvm_ioeventfd:
        uint64_t datamatch, addr
        uint32_t len
        int32_t fd
        uint32_t flags
    uint32_t KVM_IOEVENTFD_FLAG_PIO
    uint32_t KVM_IOEVENTFD_FLAG_DATAMATCH
    uint32_t KVM_IOEVENTFD_FLAG_DEASSIGN
    struct kvm_msi:
        uint32_t address_lo, address_hi, data, flags
    struct kvm_irqchip:
        uint32_t chip_id
    struct kvm_pit_state2:
        uint32_t flags
    struct kvm_clock_data:
        uint64_t clock
        uint32_t flags

    # A vCPU
    unsigned long KVM_RUN
    unsigned long KVM_SET_CPUID2
    unsigned long KVM_GET_REGS
    unsigned long KVM_SET_REGS
    unsigned long KVM_GET_SREGS
    unsigned long KVM_SET_SREGS
    unsigned long KVM_GET_XCRS
    unsigned long KVM_SET_XCRS
    unsigned long KVM_GET_XSAVE
    unsigned long KVM_GET_XSAVE2
    unsigned long KVM_SET_XSAVE
    unsigned long KVM_GET_MSRS
    unsigned long KVM_SET_MSRS
    unsigned long KVM_GET_VCPU_EVENTS
    unsigned long KVM_SET_VCPU_EVENTS
    unsigned long KVM_GET_LAPIC
    unsigned long KVM_SET_LAPIC
    unsigned long KVM_GET_DEBUGREGS
    unsigned long KVM_SET_DEBUGREGS
    unsigned long KVM_GET_MP_STATE
    unsigned long KVM_SET_MP_STATE
    unsigned long KVM_TRANSLATE

    struct kvm_msr_entry:
        uint32_t index
        uint64_t data
    struct kvm_msrs:
        uint32_t nmsrs
        kvm_msr_entry *entries
    struct kvm_translation:
        uint64_t linear_address, physical_address
        uint8_t valid

    # The page that a vCPU shares with KVM. The members' own types have no name in C.
    struct io_exit:
        uint8_t direction, size
        uint16_t port
        uint32_t count
        uint64_t data_offset
    struct mmio_exit:
        uint64_t phys_addr
        uint8_t data[8]
        uint32_t len
        uint8_t is_write
    struct internal_exit:
        uint32_t suberror, ndata
        uint64_t data[16]
    struct emulation_exit:
        uint32_t suberror, ndata
        uint64_t flags
        uint8_t insn_size
        uint8_t insn_bytes[15]
    struct fail_entry_exit:
        uint64_t hardware_entry_failure_reason
    struct unknown_exit:
        uint64_t hardware_exit_reason
    struct system_event_exit:
        uint32_t type
    struct kvm_run:
        uint8_t immediate_exit
        uint32_t exit_reason
        io_exit io
        mmio_exit mmio
        internal_exit internal
        emulation_exit emulation_failure
        fail_entry_exit fail_entry
        unknown_exit hw
        system_event_exit system_event
    uint64_t KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
    uint32_t KVM_INTERNAL_ERROR_EMULATION

    uint32_t KVM_EXIT_UNKNOWN
    uint32_t KVM_EXIT_IO
    uint32_t KVM_EXIT_HLT
    uint32_t KVM_EXIT_MMIO
    uint32_t KVM_EXIT_IRQ_WINDOW_OPEN
    uint32_t KVM_EXIT_SHUTDOWN
    uint32_t KVM_EXIT_FAIL_ENTRY
    uint32_t KVM_EXIT_INTR
    uint32_t KVM_EXIT_INTERNAL_ERROR
    uint32_t KVM_EXIT_SYSTEM_EVENT
    uint8_t KVM_EXIT_IO_OUT
    uint32_t KVM_SYSTEM_EVENT_SHUTDOWN
    uint32_t KVM_SYSTEM_EVENT_RESET
    uint32_t KVM_SYSTEM_EVENT_CRASH
