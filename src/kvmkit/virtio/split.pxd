from libc.stdint cimport uint16_t, uint32_t

from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef bint split_map(VirtQueue *q) noexcept nogil
cdef void split_quiet(VirtQueue *q) noexcept nogil
cdef void split_loud(VirtQueue *q) noexcept nogil
cdef bint split_has(VirtQueue *q) noexcept nogil
cdef int split_get(VirtQueue *q, Chain *chain) noexcept nogil
cdef void split_put(VirtQueue *q, uint16_t id, uint32_t written) noexcept nogil
cdef void split_put_together(VirtQueue *q, Chain **chains, uint32_t *written, int count) noexcept nogil
cdef bint split_wants_interrupt(VirtQueue *q) noexcept nogil
