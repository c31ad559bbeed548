from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvmkit.virtio.device cimport VirtioDevice
from kvmkit.virtio.lane cimport Lane
from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef extern from "<sys/mman.h>" nogil:
    int madvise(void *, size_t, int)
    int MADV_DONTNEED

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int, int, long, long)

cdef extern from "<linux/falloc.h>" nogil:
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE

cdef enum:
    QUEUE = 128
    QUEUES = 5
    PAGE_BYTES = 4096
    MOST_NUMBERS = 65536  # bytes of page numbers in one request: the lane does nothing else meanwhile
    TAGS = 16
    STAT_BYTES = 10
    STATS_BYTES = 160  # of all tags

cdef enum:  # what a queue is for, which depends on the features
    INFLATE = 0
    DEFLATE = 1
    STATS = 2
    HINT = 3
    REPORT = 4
    NOTHING = 5

cdef enum:  # free_page_hint_cmd_id, virtio 1.2, 5.5.6.4
    HINT_STOP = 0
    HINT_DONE = 1
    HINT_FIRST = 2

cdef class Balloon(VirtioDevice):
    cdef int roles[QUEUES]
    cdef Chain *chain
    cdef Chain *held  # the driver's buffer for statistics, while it is with us
    cdef bint holding
    cdef uint32_t wants_stats
    cdef uint8_t *given  # a bit for each page of RAM
    cdef readonly uint64_t given_pages
    cdef readonly uint64_t returned_bytes  # by reports and hints, in all
    cdef uint64_t values[TAGS]
    cdef uint32_t known  # tags that `values` has
    cdef readonly uint32_t stats_came  # how often
    cdef uint32_t hint
    cdef bint hinting
    cdef object writing  # held for changes of the configuration; its holder waits for nothing

    cdef bint pages(self, VirtQueue *q, bint inflate) noexcept nogil
    cdef void discard(self, VirtQueue *q, uint64_t address, uint64_t length) noexcept nogil
    cdef void free_pages(self, VirtQueue *q) noexcept nogil
    cdef bint take_stats(self, VirtQueue *q) noexcept nogil
    cdef void take_hint(self, VirtQueue *q) noexcept nogil
    cdef bint is_ram(self, uint64_t address, uint64_t length) noexcept nogil
    cdef bint mark(self, uint64_t address, bint inflate) noexcept nogil
