from libc.stdint cimport uint64_t

cdef struct Doorbell:
    uint64_t address
    uint64_t match
    unsigned int size  # 0: any
    int fd
    bint port
    bint matches

cdef class Doorbells:
    cdef Doorbell *bells
    cdef int count
    cdef uint64_t lowest[2]
    cdef uint64_t highest[2]

    cdef bint ring(self, bint port, uint64_t address, unsigned int size, uint64_t value) noexcept nogil
    cdef void span(self) noexcept nogil
