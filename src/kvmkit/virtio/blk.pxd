from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvmkit.block.work cimport Engine, Io
from kvmkit.virtio.device cimport VirtioDevice
from kvmkit.virtio.lane cimport Lane
from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef enum:
    QUEUE = 256
    SLOTS = 128  # requests in flight for one queue: what a guest makes us keep is small
    MOST_SEGMENTS = 16  # of one discard or write zeroes
    MOST_ZERO_SECTORS = 32768  # 16 MiB, which may have to be written out
    MOST_DISCARD_SECTORS = 1 << 22

cdef enum:  # request types and statuses, virtio 1.2, 5.2.6
    T_IN = 0
    T_OUT = 1
    T_FLUSH = 4
    T_GET_ID = 8
    T_DISCARD = 11
    T_WRITE_ZEROES = 13
    S_OK = 0
    S_IOERR = 1
    S_UNSUPP = 2

cdef struct Header:
    uint32_t type
    uint32_t reserved
    uint64_t sector

cdef struct Segment:
    uint64_t sector
    uint32_t sectors
    uint32_t flags

cdef struct Request:
    Io io
    Chain *chain
    uint32_t type
    uint32_t segment, segments  # of a discard: the next, and how many
    int next  # free request

cdef struct BlkLane:
    Engine *engine
    Request *requests
    int free  # -1: none
    bint limited
    VirtQueue *q

cdef class Blk(VirtioDevice):
    cdef readonly object disk
    cdef list contexts  # addresses of BlkLane
    cdef list workers
    cdef bint readonly
    cdef bint writeback
    cdef readonly uint64_t size
    cdef readonly uint64_t errors
    cdef int told  # the errno that was logged last
    cdef uint8_t serial[20]

    cdef bint begin(self, BlkLane *c, Request *r) noexcept nogil
    cdef void go_on(self, BlkLane *c, Request *r) noexcept nogil
    cdef void failed(self, int error) noexcept with gil
    cdef void finish(self, BlkLane *c, Request *r, uint8_t status) noexcept nogil
    cdef bint reap(self, BlkLane *c) noexcept nogil
    cdef uint8_t check_segments(self, Request *r) noexcept nogil
    cdef uint8_t read_segment(self, Request *r, uint32_t number, Segment *s) noexcept nogil
    cdef void next_segment(self, BlkLane *c, Request *r) noexcept nogil
