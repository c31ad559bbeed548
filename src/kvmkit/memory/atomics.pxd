# The compiler's atomics. Their width is that of the pointer's target, which is why these functions cast it.
from libc.stdint cimport uint16_t, uint32_t, uint64_t

cdef extern from * nogil:
    uint16_t _load16 "__atomic_load_n"(const uint16_t *, int)
    uint32_t _load32 "__atomic_load_n"(const uint32_t *, int)
    uint64_t _load64 "__atomic_load_n"(const uint64_t *, int)
    void _store16 "__atomic_store_n"(uint16_t *, uint16_t, int)
    void _store32 "__atomic_store_n"(uint32_t *, uint32_t, int)
    uint32_t fetch_or32 "__atomic_fetch_or"(uint32_t *, uint32_t, int)
    uint32_t fetch_and32 "__atomic_fetch_and"(uint32_t *, uint32_t, int)
    uint32_t exchange32 "__atomic_exchange_n"(uint32_t *, uint32_t, int)
    void fence "__atomic_thread_fence"(int)
    int RELAXED "__ATOMIC_RELAXED"
    int ACQUIRE "__ATOMIC_ACQUIRE"
    int RELEASE "__ATOMIC_RELEASE"
    int SEQ_CST "__ATOMIC_SEQ_CST"

cdef inline uint16_t load16(const void *p, int order) noexcept nogil:
    return _load16(<const uint16_t *>p, order)

cdef inline uint32_t load32(const void *p, int order) noexcept nogil:
    return _load32(<const uint32_t *>p, order)

cdef inline uint64_t load64(const void *p, int order) noexcept nogil:
    return _load64(<const uint64_t *>p, order)

cdef inline void store16(void *p, uint16_t value, int order) noexcept nogil:
    _store16(<uint16_t *>p, value, order)

cdef inline void store32(void *p, uint32_t value, int order) noexcept nogil:
    _store32(<uint32_t *>p, value, order)
