# The part of virtio-scsi that moves data: compiled, without the GIL.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t

from kvmkit.block.work cimport Engine, Io, Worker
from kvmkit.virtio.device cimport VirtioDevice
from kvmkit.virtio.lane cimport Lane
from kvmkit.virtio.limit cimport Limit
from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef enum:
    QUEUE = 128
    SLOTS = 128  # commands in flight: all that a queue can hold
    REQUEST_QUEUES = 8  # at most
    HOT_UNITS = 256  # those beyond are served by Python alone
    REQUEST = 2  # the first request queue
    HEAD_BYTES = 19  # of a request, before its CDB
    CDB_MOST = 32  # bytes of a CDB that anybody looks at
    RESPONSE_BYTES = 12  # of a response, before its sense data
    MOST_SENSE = 252
    FIXED_SENSE = 18
    REQUEST_MOST = 51  # HEAD_BYTES + CDB_MOST
    GOOD = 0
    CHECK_CONDITION = 2
    BUSY = 8  # a driver tries that again, as often as it takes
    RESPONSE_MOST = 264  # RESPONSE_BYTES + MOST_SENSE

cdef enum:  # SPC-4 and SBC-3
    READ_6 = 0x08
    WRITE_6 = 0x0A
    READ_10 = 0x28
    WRITE_10 = 0x2A
    SYNCHRONIZE_10 = 0x35
    WRITE_SAME_10 = 0x41
    UNMAP = 0x42
    READ_16 = 0x88
    WRITE_16 = 0x8A
    SYNCHRONIZE_16 = 0x91
    WRITE_SAME_16 = 0x93
    READ_12 = 0xA8
    WRITE_12 = 0xAA
    FUA = 8
    MOST_DESCRIPTORS = 256

cdef struct HotUnit:  # a unit whose commands need not go to Python now
    uint32_t ready
    uint8_t target
    uint16_t lun
    bint optical
    bint readonly
    bint write_cache
    uint32_t block  # bytes
    uint64_t blocks
    int fd
    int direct_fd
    uint32_t align
    Limit limit
    bint limited
    int first, last  # commands that wait for the limit; -1: none

cdef struct Command:
    Io io
    Chain *chain
    VirtQueue *q
    bint busy
    uint8_t target
    uint16_t lun
    uint64_t tag
    uint32_t block
    uint64_t blocks
    uint64_t first  # the block it names
    uint64_t data  # bytes that go to the driver
    uint64_t left  # bytes there was room for, or that came, and were not needed
    uint32_t extent, extents  # of UNMAP: the next, and how many
    int next

cdef class ScsiPath(VirtioDevice):
    cdef readonly object targets
    cdef Worker worker
    cdef Command *commands
    cdef int free
    cdef HotUnit hot[HOT_UNITS]
    cdef int hot_count
    cdef readonly uint64_t requests_in_python
    cdef object heating
    cdef uint32_t sense_bytes, cdb_bytes
    cdef uint64_t most_transfer
    cdef VirtQueue *requests[REQUEST_QUEUES]
    cdef int request_count
    cdef readonly int waiting  # commands, for their units' limits

    cdef bint reap(self) noexcept nogil
    cdef void begin(self, Lane lane, Command *c, bint waited) noexcept nogil
    cdef bint must_wait(self, Lane lane, Command *c, HotUnit *unit) noexcept nogil
    cdef Command *next_waiting(self, HotUnit *unit) noexcept nogil
    cdef bint let_go(self, Lane lane) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef bint fast(self, Command *c, HotUnit *unit, const uint8_t *cdb) noexcept nogil
    cdef bint move(self, Command *c, HotUnit *unit, const uint8_t *cdb, bint inward) noexcept nogil
    cdef bint unmap(self, Command *c, HotUnit *unit, const uint8_t *cdb) noexcept nogil
    cdef bint same(self, Command *c, HotUnit *unit, const uint8_t *cdb) noexcept nogil
    cdef bint read_extent(self, Command *c, uint32_t number, uint64_t *first, uint64_t *count) noexcept nogil
    cdef void next_extent(self, Command *c) noexcept nogil
    cdef void start(self, Command *c) noexcept nogil
    cdef void go_on(self, Command *c) noexcept nogil
    cdef void good(self, Command *c) noexcept nogil
    cdef void failed(self, Command *c) noexcept nogil
    cdef void answer(self, Command *c, uint8_t response, uint8_t status, const uint8_t *sense) noexcept nogil
    cdef void give_back(self, Command *c, uint64_t written) noexcept nogil
    cdef void slow(self, Command *c) noexcept nogil
    cdef _slow(self, Command *c)
    cdef HotUnit *find_hot(self, uint8_t target, uint16_t lun) noexcept nogil

cdef uint64_t big(const uint8_t *p, int count) noexcept nogil
