from libc.stdint cimport int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from kvmkit.block.uring cimport Uring
from kvmkit.virtio.device cimport VirtioDevice
from kvmkit.virtio.lane cimport Lane
from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int, int, long, long)

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv2(int, const iovec *, int, long, int)
    ssize_t pwritev2(int, const iovec *, int, long, int)
    int RWF_DSYNC

cdef extern from "<linux/falloc.h>" nogil:
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE
    int FALLOC_FL_ZERO_RANGE

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int)

cdef enum:
    QUEUE = 256
    SLOTS = 128  # requests in flight for one queue: what a guest makes us keep is small
    MOST_SEGMENTS = 16  # of one discard or write zeroes
    MOST_ZERO_SECTORS = 32768  # 16 MiB: the lane does nothing else meanwhile
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
    Chain *chain
    iovec *iov  # the data alone
    uint16_t first  # what of `iov` is not done
    uint16_t count
    uint32_t type
    int fd
    uint64_t offset
    uint64_t left
    int next  # free request

cdef struct BlkLane:
    Uring ring
    Request *requests
    int free  # -1: none
    int in_flight
    bint limited
    VirtQueue *q

cdef class Blk(VirtioDevice):
    cdef readonly object disk
    cdef list contexts  # addresses of BlkLane
    cdef int fd, direct_fd
    cdef bint readonly
    cdef bint writeback
    cdef readonly uint64_t size
    cdef uint8_t serial[20]

    cdef bint begin(self, BlkLane *c, Request *r) noexcept nogil
    cdef void finish(self, BlkLane *c, Request *r, uint8_t status) noexcept nogil
    cdef void submit(self, BlkLane *c, Request *r) noexcept nogil
    cdef void complete(self, BlkLane *c, Request *r, int32_t result) noexcept nogil
    cdef bint reap(self, BlkLane *c) noexcept nogil
    cdef bint aligned(self, Request *r) noexcept nogil
    cdef int flags(self, Request *r) noexcept nogil
    cdef uint8_t change(self, Request *r) noexcept nogil
    cdef uint8_t change_one(self, uint32_t type, Segment *s) noexcept nogil

cdef bint gather(Request *r, uint16_t first, uint16_t end, uint64_t skip) noexcept nogil
cdef void advance(Request *r, uint64_t done) noexcept nogil
