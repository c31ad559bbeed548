from libc.stdint cimport int64_t, uint32_t, uint64_t

cdef enum TimerMode:
    ONE_SHOT = 0
    PERIODIC = 1
    TSC_DEADLINE = 2

cdef class ApicTimer:
    cdef int mode
    cdef uint32_t divide
    cdef uint32_t initial
    cdef int64_t expiry
    cdef int64_t period
    cdef uint64_t tsc_deadline
    cdef uint32_t tsc_khz
    cdef uint64_t tsc
    cdef int64_t tsc_time

    cdef void reset(self) noexcept nogil
    cdef void set_mode(self, int mode, int64_t now) noexcept nogil
    cdef void set_divide(self, uint32_t divide, int64_t now) noexcept nogil
    cdef void arm(self, uint32_t count, int64_t now) noexcept nogil
    cdef void start(self, uint32_t count, int64_t now) noexcept nogil
    cdef void set_deadline(self, uint64_t tsc) noexcept nogil
    cdef void set_tsc(self, uint64_t tsc, int64_t now) noexcept nogil
    cdef uint32_t remaining(self, int64_t now) noexcept nogil
    cdef bint due(self, int64_t now) noexcept nogil
    cdef void restore(self, int mode, uint32_t divide, uint32_t initial, uint32_t current, int64_t now) noexcept nogil
