# One operation on a disk, and two ways to have it done while the lane goes on: io_uring, or a few threads.
from libc.stdint cimport int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from kvmkit.accel.tcg.threads cimport pthread_cond_t, pthread_mutex_t
from kvmkit.block.uring cimport Uring, io_uring_sqe

cdef extern from "<fcntl.h>" nogil:
    int fallocate(int, int, long, long)

cdef extern from "<sys/uio.h>" nogil:
    ssize_t preadv2(int, const iovec *, int, long, int)
    ssize_t pwritev2(int, const iovec *, int, long, int)
    int RWF_DSYNC
    int RWF_NOWAIT

cdef extern from "<linux/falloc.h>" nogil:
    int FALLOC_FL_KEEP_SIZE
    int FALLOC_FL_PUNCH_HOLE
    int FALLOC_FL_ZERO_RANGE

cdef extern from "<unistd.h>" nogil:
    int fdatasync(int)

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int poll(pollfd *, unsigned long, int)

cdef extern from "<stdlib.h>" nogil:
    int posix_memalign(void **, size_t, size_t)

cdef enum:
    IO_READ = 0
    IO_WRITE = 1
    IO_FLUSH = 2
    IO_DISCARD = 3
    IO_ZERO = 4

cdef enum:
    BOUNCE_MOST = 1 << 20  # bytes of a copy for direct I/O: more goes through the page cache
    BOUNCE_ALIGN = 4096
    ZEROS = 1 << 16
    POOL_THREADS = 4  # of one lane
    SLOW_NS = 1000000  # a write that kept the lane for longer than this makes it hand writes on,
    DISTRUST_NS = 200000000  # for so long

cdef struct Io:
    # What its owner sets.
    uint8_t kind
    bint durable  # IO_WRITE: on the disk when it is done
    bint zeroes  # IO_DISCARD: must read as zeros afterwards
    int fd  # through the page cache
    int direct_fd  # past it; -1: none
    uint32_t align  # what direct I/O wants of places, lengths and addresses
    uint64_t offset, left
    iovec *iov
    uint16_t count
    void *owner
    # How it ended: 0, or an errno.
    int error
    # The worker's.
    int using
    bint zeroing
    iovec *at  # what is not done, in `iov` or `own`
    uint16_t rest
    iovec own
    void *bounce
    iovec *lent  # what the bounce buffer stands for
    uint64_t total
    Engine *engine
    Io *next

cdef struct Pool:
    pthread_mutex_t mutex
    pthread_cond_t work
    Io *first
    Io *last
    bint ending

cdef struct Engine:
    Uring ring  # ring.fd -1: there is none
    Pool *pool
    int event  # eventfd: the pool has finished something
    Io *done  # under the pool's lock
    uint32_t finished  # whether there is anything there, for a look without the lock
    int in_flight
    int64_t slow_until  # writes are handed on until then

cdef bint io_begin(Engine *e, Io *io) noexcept nogil
cdef void io_flush(Engine *e) noexcept nogil
cdef bint io_has(Engine *e) noexcept nogil
cdef Io *io_take(Engine *e) noexcept nogil
cdef void io_wait(Engine *e) noexcept nogil
cdef void io_awake(Engine *e) noexcept nogil

cdef void io_aim(Io *io) noexcept nogil
cdef bint io_inline(Engine *e, Io *io) noexcept nogil
cdef int64_t io_do(Io *io) noexcept nogil
cdef bint io_step(Io *io, int64_t result) noexcept nogil
cdef void io_submit(Engine *e, Io *io) noexcept nogil
cdef void io_end(Io *io) noexcept nogil
cdef bint io_fits(const Io *io) noexcept nogil
cdef bint io_begin_zeroing(Io *io) noexcept nogil
cdef int io_change(const Io *io) noexcept nogil

cdef class Worker:
    cdef Engine engine
    cdef Pool pool
    cdef list threads
    cdef readonly bint uses_uring

    cdef int descriptor(self) noexcept nogil
    cdef void labour(self) noexcept nogil
