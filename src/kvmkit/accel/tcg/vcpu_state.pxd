from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvmkit.accel.tcg.core cimport CpuCore

cdef class CpuState(CpuCore):
    cdef bint running

    cdef uint64_t flags(self) noexcept nogil
    cdef set_leaves(self, dict table)
    cdef set_derived(self)
    cdef xsave_area(self, uint8_t *area, bint store)
    cdef translator_msr(self, bint store)
    cdef uint64_t page_of(self, uint64_t address)
    cdef refuse_running(self)
    cdef msr(self, uint32_t index)
    cdef set_msr(self, uint32_t index, uint64_t value)
