from libc.stdint cimport uint64_t

from .device cimport Device

cdef struct Range:
    uint64_t base
    uint64_t size
    int device

cdef class AddressSpace:
    cdef Range *ranges
    cdef int count
    cdef int last
    cdef list devices
    cdef str name
    cdef readonly uint64_t unclaimed

    cdef int find(self, uint64_t address, unsigned int size) noexcept nogil
    cpdef uint64_t read(self, uint64_t address, unsigned int size)
    cpdef write(self, uint64_t address, unsigned int size, uint64_t value)
