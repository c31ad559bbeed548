from libc.stdint cimport uint64_t

cdef void mark_page(void *cs, uint64_t physical, bint slow) noexcept nogil
