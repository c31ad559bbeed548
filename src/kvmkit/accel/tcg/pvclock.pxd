from libc.stdint cimport int8_t, int64_t, uint32_t, uint64_t

from kvmkit.memory.ram cimport GuestMemory

cdef class PvClock:
    cdef GuestMemory memory
    cdef uint64_t start_tsc
    cdef int64_t start_ns
    cdef int64_t offset_ns  # guest clock = CLOCK_MONOTONIC + this
    cdef bint running  # the four below hold
    cdef uint64_t base_tsc
    cdef uint64_t base_ns
    cdef uint32_t multiplier
    cdef int8_t shift
    cdef readonly uint64_t tsc_khz
    cdef readonly uint64_t system_msr
    cdef readonly uint64_t wall_msr

    cdef void measure(self, uint64_t tsc, int64_t now) noexcept nogil
    cdef bint read_msr(self, uint32_t msr, uint64_t *value) noexcept nogil
    cdef bint write_msr(self, uint32_t msr, uint64_t value, uint64_t tsc, int64_t now) noexcept nogil
    cdef void move(self, uint64_t difference) noexcept nogil
    cdef void start(self, uint64_t tsc, int64_t now) noexcept nogil
    cdef uint64_t reading(self, uint64_t tsc) noexcept nogil
    cdef bint publish(self) noexcept nogil
    cdef bint publish_wall(self, int64_t now) noexcept nogil
    cdef get(self, uint64_t tsc, int64_t now)
    cdef set(self, bytes data, uint64_t tsc, int64_t now)
