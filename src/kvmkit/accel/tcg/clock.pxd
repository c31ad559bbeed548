from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef int64_t later(int64_t now, int64_t delta) noexcept nogil
cdef int64_t scale(uint64_t ticks, uint32_t hz, uint32_t per) noexcept nogil
cdef uint64_t ticks_in(int64_t ns, uint32_t hz) noexcept nogil
