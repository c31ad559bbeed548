from libc.stdint cimport int64_t, uint32_t, uint64_t

from kvmkit.memory.ram cimport GuestMemory

cdef class PvClock:
    cdef GuestMemory memory
    cdef uint64_t start_tsc
    cdef int64_t start_ns
    cdef int64_t offset_ns  # guest clock = CLOCK_MONOTONIC + this
    cdef readonly uint64_t tsc_khz
    cdef readonly uint64_t system_msr
    cdef readonly uint64_t wall_msr

    cdef void measure(self, uint64_t tsc, int64_t now) noexcept nogil
    cdef bint read_msr(self, uint32_t msr, uint64_t *value) noexcept nogil
    cdef bint write_msr(self, uint32_t msr, uint64_t value, uint64_t tsc, int64_t now) noexcept nogil
    cdef bint publish(self, uint64_t tsc, int64_t now) noexcept nogil
    cdef bint publish_wall(self, int64_t now) noexcept nogil
