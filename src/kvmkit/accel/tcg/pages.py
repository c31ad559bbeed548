"""The software CPU's TLB, where it is the machine's: which pages are written the slow way, past a look for code."""

import cython
from cython.cimports.kvmkit.accel.tcg.layout import (
    CPU_TLB_TABLES,
    CPU_TLB_VICTIMS,
    TLB_ENTRY_BITS,
    TLB_MODES,
    TLB_NOT_DIRTY,
    TLB_VICTIM_STRIDE,
    TLB_VICTIMS,
    TlbEntry,
    TlbTable,
    u8p,
)
from cython.cimports.libc.stdint import uint64_t


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def mark_page(cs: cython.p_void, physical: uint64_t, slow: cython.bint) -> cython.void:
    """Have writes to this page go the slow way, or no longer, in every TLB entry that maps it."""
    mode: cython.int
    i: uint64_t
    count: uint64_t
    entries: cython.pointer(TlbEntry)
    for mode in range(2 * TLB_MODES):
        if mode < TLB_MODES:
            table = cython.cast(cython.pointer(TlbTable), cython.cast(u8p, cs) + CPU_TLB_TABLES) + mode
            count = (table.mask >> TLB_ENTRY_BITS) + 1
            entries = table.entries
        else:
            count = TLB_VICTIMS
            victims = cython.cast(u8p, cs) + CPU_TLB_VICTIMS + (mode - TLB_MODES) * TLB_VICTIM_STRIDE
            entries = cython.cast(cython.pointer(TlbEntry), victims)
        for i in range(count):
            if entries[i].physical == physical and entries[i].write != cython.cast(uint64_t, -1):
                if slow:
                    entries[i].write |= TLB_NOT_DIRTY
                else:
                    entries[i].write &= ~cython.cast(uint64_t, TLB_NOT_DIRTY)
