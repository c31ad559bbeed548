from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

from kvmkit.accel.tcg.threads cimport pthread_mutex_t
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
    SPARE_AT = TABLES_AT + 16 * RING * RING  # headers and status of requests of our own
    BOUNCE_AT = SPARE_AT + PAGE
    BOUNCE = 1 << 20
    PART = BOUNCE_AT + BOUNCE

cdef enum:  # in the spare page
    FLUSH_HEADER = 0
    FLUSH_STATUS = 16
    AGAIN_HEADER = 32
    AGAIN_STATUS = 48

cdef enum:
    KEPT_MOST = 64 << 20  # bytes of writes; then a flush of our own
    AGAIN_MS = 30000

cdef enum:  # of a disk's requests, virtio 1.2, 5.2.6
    T_OUT = 1
    T_FLUSH = 4
    T_DISCARD = 11
    T_WRITE_ZEROES = 13

cdef enum:
    FUSE_INIT = 26  # a request's operation: a session begins
    FUSE_HEADER = 40
    FUSE_ANSWER = 16
    ENOTCONN_CODE = 107

cdef enum:
    FINISH_MS = 5000  # a pause waits so long for what the backend has

cdef struct Kept:  # a write that was answered, and not flushed since; its bytes stand behind this
    Kept *next
    uint64_t number
    uint64_t bytes  # header and data

cdef struct Unflushed:  # of a disk, in the order in which all its queues' writes were answered
    Kept *first
    Kept *last
    uint64_t answered
    uint64_t bytes
    bint flushing  # a flush of ours is under way

cdef struct DiskHeader:
    uint32_t type
    uint32_t reserved
    uint64_t sector

cdef struct Slot:
    Chain *chain
    bint busy
    bint ours  # a flush that no driver asked for
    uint32_t type  # of a disk's request, where these are kept
    uint64_t covers  # of a flush: the last write that was answered when it was sent
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
    bint refuse  # answer with an error, until the driver begins anew
    bint indirect
    int kick
    int call
    uint64_t relayed
    bint keep  # a disk's: what is not flushed is sent again to the next backend
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
    cdef Unflushed unflushed
    cdef pthread_mutex_t unflushed_lock

    cdef Ring *ring_at(self, int index) noexcept
    cdef void put(self, Ring *r, int index) noexcept nogil
    cdef void take_back(self, Ring *r, VirtQueue *q, int index, uint32_t written) noexcept nogil
    cdef void release_slot(self, Ring *r, int index) noexcept nogil
    cdef bint reap(self, Ring *r, VirtQueue *q) noexcept nogil
    cdef void fail(self, Ring *r, VirtQueue *q, int index) noexcept nogil
    cdef bint begins(self, Ring *r, int index) noexcept nogil
    cdef void note(self, Slot *slot) noexcept nogil
    cdef void done(self, Ring *r, Slot *slot) noexcept nogil
    cdef void drop(self, uint64_t up_to) noexcept nogil
    cdef bint flush_ours(self, Ring *r) noexcept nogil
    cdef int again(self, Ring *r, DiskHeader *header, const uint8_t *data, uint64_t length) noexcept nogil
    cdef int replay_all(self, Ring *r) noexcept nogil
    cdef void blame(self, Ring *r, const char *what) noexcept nogil
