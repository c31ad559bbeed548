"""Which MSRs there are, and what the guest may put in them and in the control regs; anything else is a #GP.

The translator takes any value for an MSR or CR4: bits that it does not know would be lost without a word.
Source: AMD APM volume 2, appendix A and 3.1; Intel SDM volume 3, 2.5 and volume 4.
"""

import cython
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t

EFER = cython.declare(uint32_t, 0xC0000080)
LSTAR = cython.declare(uint32_t, 0xC0000082)
FS_BASE = cython.declare(uint32_t, 0xC0000100)
TSC_AUX = cython.declare(uint32_t, 0xC0000103)
EFER_KNOWN = cython.declare(uint32_t, 0x5D01)  # SCE, LME, LMA, NXE, SVME, FFXSR


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def known_msr(msr: uint32_t) -> cython.bint:
    """Whether Unicorn keeps this MSR. It reads others as 0 and forgets writes; a processor raises #GP."""
    if msr < 0x100:
        return msr in (0x17, 0x3A, 0x8B, 0xFE)
    if msr < 0x300:
        return msr in (0x174, 0x175, 0x176, 0x179, 0x17A, 0x17B, 0x186, 0x187, 0x198, 0x199, 0x19A, 0x19B, 0x19C,
                       0x1A0, 0x1D9, 0x277, 0x2FF) or 0x200 <= msr <= 0x21F or 0x250 <= msr <= 0x26F  # fmt: skip
    low: uint32_t = msr & 0xFFFF
    if msr >> 16 == 0xC000:
        return 0x80 <= low <= 0x84 or 0x100 <= low <= 0x103
    if msr >> 16 == 0xC001:  # AMD's own; Linux reads many of them unasked
        return low < 0x2000
    return 0x400 <= msr < 0x428 or msr == 0xDA0  # ten machine-check banks, as MCG_CAP tells


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def machine_msr(msr: uint32_t) -> cython.bint:
    """Whether `core` keeps this MSR: the TSC, the local APIC's and kvm-clock's."""
    return msr in (0x10, 0x1B, 0x6E0, 0x4B564D00, 0x4B564D01) or 0x800 <= msr < 0x900


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def canonical(address: uint64_t) -> cython.bint:
    """Whether the address has a page-table entry with 4 levels: its upper 17 bits are equal."""
    return cython.cast(int64_t, address << 16) >> 16 == cython.cast(int64_t, address)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def memory_types(value: uint64_t) -> cython.bint:
    """Whether each byte of the PAT is a memory type: 0, 1 and 4 to 7."""
    left: cython.int = 8
    while left and value & 0xFF in (0, 1, 4, 5, 6, 7):
        value >>= 8
        left -= 1
    return left == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def msr_takes(msr: uint32_t, value: uint64_t) -> cython.bint:
    """Whether WRMSR to one of Unicorn's MSRs takes this value."""
    if msr in (0x175, 0x176) or msr - LSTAR <= 1 or msr - FS_BASE <= 2:
        return canonical(value)  # SYSENTER's two, LSTAR and CSTAR, FS.base and GS.base and KernelGSbase
    if msr == 0x277:
        return memory_types(value)
    if 0x400 <= msr < 0x480:  # a machine-check bank: all of its sources on or off, and a status only to be cleared
        if msr & 3 == 0:
            return value == 0 or (value | 1 << 10 | 1) == cython.cast(uint64_t, -1)  # Linux leaves bit 10 of one off
        return msr & 3 != 1 or value == 0
    if msr == EFER:
        return value & ~cython.cast(uint64_t, EFER_KNOWN) == 0
    if msr == TSC_AUX:
        return value >> 32 == 0
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def control_takes(reg: cython.int, value: uint64_t, cr4_bits: uint64_t) -> cython.bint:
    """Whether MOV to CR0, CR3, CR4 or CR8 takes this value; `cr4_bits`: those of the CPU's features."""
    if reg == 0:
        if value >> 32:
            return False
        # Paging needs protection, and write-through off needs the cache off.
        without_protection: cython.bint = value >> 31 & 1 and not value & 1
        uncached: cython.bint = value >> 29 & 1 and not value >> 30 & 1
        return not without_protection and not uncached
    if reg == 4:
        return value & ~cr4_bits == 0
    if reg == 8:
        return value >> 4 == 0
    return True
