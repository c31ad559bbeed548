from libc.stdint cimport int64_t, uint8_t

cdef enum:
    OVERRUN = -1
    BAD_DISTANCE = -2
    TOO_LONG = -3

cdef int64_t _extended(const uint8_t* source, int64_t length, int64_t* at) noexcept nogil
cdef int64_t _decode(const uint8_t* source, int64_t length, uint8_t* target, int64_t size) noexcept nogil
