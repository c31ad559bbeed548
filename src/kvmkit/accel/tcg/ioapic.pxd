from libc.stdint cimport uint32_t, uint64_t

from kvmkit.accel.tcg.lapic cimport Lapic

cdef enum:
    PINS = 24

cdef class Ioapic:
    cdef Lapic lapic
    cdef uint32_t selected
    cdef uint32_t id
    cdef readonly uint32_t lines
    cdef public uint32_t resample
    cdef readonly bint extint
    cdef uint64_t entries[24]

    cpdef void reset(self) noexcept nogil
    cpdef uint32_t read(self, uint32_t offset) noexcept nogil
    cpdef void write(self, uint32_t offset, uint32_t value) noexcept nogil
    cpdef void set_line(self, unsigned int pin, bint level) noexcept nogil
    cpdef uint32_t eoi(self, int vector) noexcept nogil
    cpdef void retry(self) noexcept nogil

    cdef bint service(self, int pin) noexcept nogil
    cdef void store(self, uint32_t index, uint32_t value) noexcept nogil
    cdef void follow(self) noexcept nogil
