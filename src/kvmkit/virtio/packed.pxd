from libc.stdint cimport uint16_t, uint32_t

from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef bint packed_map(VirtQueue *q) noexcept nogil
cdef void packed_quiet(VirtQueue *q) noexcept nogil
cdef void packed_loud(VirtQueue *q) noexcept nogil
cdef bint packed_has(VirtQueue *q) noexcept nogil
cdef int packed_get(VirtQueue *q, Chain *chain) noexcept nogil
cdef void packed_put(VirtQueue *q, uint16_t id, uint16_t slots, uint32_t written) noexcept nogil
cdef uint16_t packed_fill(VirtQueue *q, uint16_t id, uint16_t slots, uint32_t written) noexcept nogil
cdef void packed_put_together(VirtQueue *q, Chain **chains, uint32_t *written, int count) noexcept nogil
cdef bint packed_wants_interrupt(VirtQueue *q) noexcept nogil
