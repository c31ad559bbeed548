# A lane's thread, and what it asks of the device it works for.
from libc.stdint cimport int64_t, uint8_t, uint32_t

from kvmkit.accel.tcg.threads cimport pthread_cond_t, pthread_mutex_t
from kvmkit.virtio.ring cimport VirtQueue

cdef enum:
    LANE_QUEUES = 32
    LANE_WATCHES = 8  # descriptors of a backend's

cdef enum:  # how long it looks for more before it sleeps, in ns: at most, and when it begins to
    SPIN_MOST_NS = 50000
    SPIN_FIRST_NS = 4000

cdef enum:
    MOST_DISTRUST = 1024

cdef enum:  # what a lane is to do, and what it does
    LANE_HOLD = 0
    LANE_RUN = 1
    LANE_END = 2

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN
    int POLLOUT

cdef extern from * nogil:
    """
    #include <poll.h>
    #include <time.h>
    """
    int ppoll(pollfd *, unsigned long, const void *, const void *)
    void cpu_pause "__builtin_ia32_pause"()

cdef class Lane

cdef class Served:
    # All on the lane's thread, without the GIL.
    cdef bint look(self, Lane lane) noexcept nogil
    cdef void serve(self, Lane lane, VirtQueue *q) noexcept nogil
    cdef void flush(self, Lane lane) noexcept nogil
    cdef void drain(self, Lane lane) noexcept nogil
    cdef void broke(self, Lane lane, VirtQueue *q) noexcept nogil

cdef class Lane:
    cdef readonly int index
    cdef Served server
    cdef void *context  # the server's own, for this lane
    cdef int64_t due  # when to serve again though nobody rings (monotonic ns); 0: never
    cdef readonly uint32_t rounds, sleeps
    cdef list owned
    cdef VirtQueue *queues[LANE_QUEUES]
    cdef bint quiet[LANE_QUEUES]
    cdef bint told[LANE_QUEUES]
    cdef int count
    cdef pollfd fds[1 + LANE_WATCHES + LANE_QUEUES]  # our own, the watches, the doorbells
    cdef int64_t spin
    cdef int64_t most_spin
    cdef bint spun_dry  # it has just looked for as long as it may, and found nothing
    cdef int distrust, trust_in  # sleeps to let pass before it looks again, where that did not pay
    cdef bint patient  # its server waits for a descriptor: to look meanwhile would only take what that needs
    cdef bint fresh
    cdef uint32_t wanted
    cdef uint32_t state
    cdef pthread_mutex_t mutex
    cdef pthread_cond_t changed
    cdef int wake
    cdef object thread

    cdef void watch(self, int slot, int fd, short events) noexcept nogil
    cdef short fired(self, int slot) noexcept nogil

    cdef void serve_rounds(self) noexcept nogil
    cdef bint rest(self) noexcept nogil
    cdef bint round(self) noexcept nogil
    cdef bint end_round(self) noexcept nogil
    cdef void adapt(self, int64_t slept) noexcept nogil
    cdef void sleep(self) noexcept nogil
    cdef void order(self, uint32_t wanted) noexcept nogil
