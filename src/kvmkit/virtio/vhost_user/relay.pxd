from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from kvmkit.virtio.device cimport VirtioDevice
from kvmkit.virtio.lane cimport Lane
from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef enum:
    RING = 256  # entries of a queue, the guest's and the backend's
    PAGE = 4096

cdef enum:  # where everything is in one queue's part of the rings' memory
    AVAIL_AT = 16 * RING
    USED_AT = AVAIL_AT + PAGE
    TABLES_AT = USED_AT + PAGE
    PART = TABLES_AT + 16 * RING * RING

cdef enum:
    FUSE_HEADER = 40
    FUSE_ANSWER = 16
    ENOTCONN_CODE = 107

cdef enum:
    FINISH_MS = 5000  # a pause waits so long for what the backend has

cdef struct Slot:
    Chain *chain
    bint busy
    uint16_t head  # its descriptor in the backend's ring
    int next

cdef struct Ring:
    uint8_t *memory  # this queue's part: shared with the backend, which may write anything there
    uint64_t guest  # where the backend finds it, as a guest physical address
    uint16_t available
    uint16_t seen
    Slot slots[RING]
    int free  # first free slot; -1: none
    int in_flight
    uint16_t link[RING]  # free descriptors
    uint16_t free_descriptor
    short slot_of[RING]  # by head; -1: not with the backend
    bint fresh  # something was added that the backend was not told of
    bint up  # a backend serves this ring
    bint refuse  # none ever will: answer with an error
    bint indirect
    int kick
    int call
    uint64_t relayed
    const char *wrong  # what the backend did

cdef class Relay(VirtioDevice):
    cdef object mapping
    cdef readonly int rings_fd
    cdef readonly uint64_t rings_bytes
    cdef uint8_t *base
    cdef Ring *rings
    cdef int ring_count
    cdef readonly int trouble  # eventfd: a backend did wrong
    cdef public bint finishing  # holding waits for the backend
    cdef bint indirect

    cdef Ring *ring_at(self, int index) noexcept
    cdef void put(self, Ring *r, int index) noexcept nogil
    cdef void take_back(self, Ring *r, VirtQueue *q, int index, uint32_t written) noexcept nogil
    cdef bint reap(self, Ring *r, VirtQueue *q) noexcept nogil
    cdef void fail(self, Ring *r, VirtQueue *q, int index) noexcept nogil
    cdef void blame(self, Ring *r, const char *what) noexcept nogil
