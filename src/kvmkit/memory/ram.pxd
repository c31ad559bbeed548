from libc.stdint cimport uint8_t, uint64_t

cdef class GuestMemory:
    cdef uint8_t *base
    cdef readonly uint64_t size
    cdef readonly uint64_t low
    cdef readonly int fd
    cdef object mapping

    cdef uint8_t *pointer(self, uint64_t address, uint64_t length) noexcept nogil
