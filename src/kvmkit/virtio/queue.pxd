from libc.stdint cimport uint16_t, uint32_t, uint64_t

from kvmkit.memory.ram cimport GuestMemory
from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_membarrier

cdef extern from "<linux/membarrier.h>" nogil:
    int MEMBARRIER_PRIVATE "MEMBARRIER_CMD_PRIVATE_EXPEDITED"
    int MEMBARRIER_REGISTER_PRIVATE "MEMBARRIER_CMD_REGISTER_PRIVATE_EXPEDITED"

# The five verbs, and what goes with them.
cdef void queue_start(VirtQueue *q) noexcept nogil
cdef bint queue_has(VirtQueue *q) noexcept nogil
cdef int queue_get(VirtQueue *q, Chain *chain) noexcept nogil
cdef void queue_unget(VirtQueue *q, Chain *chain) noexcept nogil
cdef void queue_release(VirtQueue *q, Chain *chain, uint32_t written) noexcept nogil
cdef void queue_release_together(VirtQueue *q, Chain **chains, uint32_t *written, int count) noexcept nogil
cdef void queue_signal(VirtQueue *q) noexcept nogil
cdef bint queue_end(VirtQueue *q) noexcept nogil

cdef void full_fence(VirtQueue *q) noexcept nogil
cdef void put(VirtQueue *q, uint16_t id, uint16_t slots, uint32_t written) noexcept nogil
cdef void tell_engine(VirtQueue *q, const Chain *chain) noexcept nogil
cdef void interrupt(VirtQueue *q) noexcept nogil
cdef void signal_fenced(VirtQueue *q) noexcept nogil

cdef class Queue:
    cdef VirtQueue q
    cdef Chain *chain
    cdef GuestMemory memory
    cdef readonly str failure
