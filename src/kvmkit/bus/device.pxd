from libc.stdint cimport uint64_t

cdef class Device:
    cpdef uint64_t read(self, uint64_t offset, unsigned int size)
    cpdef write(self, uint64_t offset, unsigned int size, uint64_t value)
