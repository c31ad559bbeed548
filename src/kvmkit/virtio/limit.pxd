from libc.stdint cimport int64_t, uint64_t

cdef struct Bucket:
    double rate  # tokens a second; 0: no limit
    double burst
    double level
    int64_t at  # when `level` was right (monotonic ns)

cdef struct Limit:  # one for a device, shared by its lanes
    Bucket bytes
    Bucket operations
    unsigned int lock

cdef void limit_lock(Limit *limit) noexcept nogil
cdef int64_t bucket_wait(Bucket *b, int64_t now) noexcept nogil
cdef void bucket_set(Bucket *b, double rate, double burst) noexcept nogil
cdef void limit_set(Limit *limit, double bytes, double byte_burst, double operations, double operation_burst) noexcept nogil
cdef int64_t limit_wait(Limit *limit) noexcept nogil
cdef void limit_take(Limit *limit, uint64_t bytes) noexcept nogil
