# Where things stand in Unicorn 2.1.4's private structures (64-bit hosts). Checked at start by cpu.calibrate.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

ctypedef uint8_t *u8p
ctypedef uint8_t **u8pp

cdef struct SegmentCache:
    uint32_t selector
    uint64_t base
    uint32_t limit
    uint32_t flags  # the descriptor's second word

# The start of CPUX86State.
cdef struct Env:
    uint64_t regs[16]
    uint64_t eip
    uint64_t eflags  # without the arithmetic flags and DF, which stand below
    uint64_t cc_dst
    uint64_t cc_src
    uint64_t cc_src2
    uint32_t cc_op
    int32_t df  # 1: DF clear, -1: DF set
    uint32_t hflags
    uint32_t hflags2
    SegmentCache segs[6]  # ES CS SS DS FS GS
    SegmentCache ldt
    SegmentCache tr
    SegmentCache gdt
    SegmentCache idt
    uint64_t cr[9]
    int32_t a20_mask

# Offsets in CPUX86State past that.
cdef enum:
    ENV_EFER = 592
    ENV_SYSENTER_CS = 4800  # u32
    ENV_SYSENTER_ESP = 4808
    ENV_SYSENTER_EIP = 4816
    ENV_STAR = 4824
    ENV_LSTAR = 4840
    ENV_CSTAR = 4848
    ENV_FMASK = 4856
    ENV_XCR0 = 4904
    ENV_EXCEPTION_IS_INT = 5388  # u32
    ENV_DR = 5400
    ENV_OLD_EXCEPTION = 5496  # i32
    ENV_TSC_OFFSET = 5512
    ENV_CPUID_LEVEL = 5604  # u32
    ENV_CPUID_XLEVEL = 5608  # u32
    ENV_CPUID_VENDOR = 5616  # u32 x 3
    ENV_CPUID_VERSION = 5628  # u32
    ENV_FEATURES = 5632  # u32 or u64 words, see FEATURE_*
    ENV_CPUID_MODEL = 6176  # 48 bytes
    ENV_UC = 7000

# Offsets in CPUState, which stands CPU_ENV bytes before its CPUX86State.
cdef enum:
    CPU_ENV = 35408
    CPU_INTERRUPT_REQUEST = 28  # u32
    CPU_ENV_POINTER = 296
    CPU_ICOUNT_POINTER = 304
    CPU_OPAQUE = 33136
    CPU_HALTED = 33176  # u32
    CPU_EXCEPTION_INDEX = 33184  # i32
    CPU_UC = 33192
    UC_CPU = 440
    UC_NO_EXIT_REQUEST = 2034  # bool
    UC_MEMORY_MAPPING = 288  # MemoryRegion *(*)(uc_engine *, uint64_t address)
    REGION_PRIORITY = 92  # i32
    XSAVE_AREA_BYTES = 2704

# HF_ and HF2_ bits of hflags and hflags2.
cdef enum:
    HF_CPL = 3
    HF_INHIBIT_IRQ = 1 << 3
    HF_PE = 1 << 7
    HF_CS64 = 1 << 15
    HF_GUEST = 1 << 21
    HF2_GIF = 1
    HF2_HIF = 1 << 1
    HF2_NMI = 1 << 2
    HF2_VINTR = 1 << 3

cdef enum:
    CC_OP_EFLAGS = 1
    ARITHMETIC_FLAGS = 0x8D5
    FLAG_IF = 0x200
    FLAG_DF = 0x400
    FLAG_VM = 0x20000
    FLAG_RF = 0x10000
    INTERRUPT_HARD = 2
    INTERRUPT_NMI = 0x200
    R_CS = 1
    R_SS = 2
    RAX = 0
    RCX = 1
    RDX = 2
    RSP = 4
    R11 = 11

# A translation look-aside buffer entry; an address that is not there is -1.
cdef struct TlbEntry:
    uint64_t read
    uint64_t write
    uint64_t code
    uint64_t physical
    uint64_t addend
    uint64_t padding[3]

cdef struct TlbTable:
    uint64_t mask  # (entries - 1) << TLB_ENTRY_BITS
    TlbEntry *entries

# The tables stand before CPUX86State, at these offsets in CPUState.
cdef enum:
    CPU_TLB_TABLES = 35344
    CPU_TLB_VICTIMS = 33248 + 48
    TLB_VICTIM_STRIDE = 696
    TLB_VICTIMS = 8
    TLB_MODES = 3
    TLB_ENTRY_BITS = 6
    TLB_NOT_DIRTY = 1 << 10  # writes go the slow way, which looks for translated code
