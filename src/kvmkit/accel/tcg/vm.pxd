from libc.stdint cimport int64_t, uint32_t, uint64_t

from kvmkit.accel.tcg.core cimport CpuCore
from kvmkit.memory.ram cimport GuestMemory

cdef enum:
    LINES = 256
    ROUTES = 1024

cdef extern from "<poll.h>" nogil:
    struct pollfd:
        int fd
        short events
        short revents
    int POLLIN

cdef extern from * nogil:
    """
    #define _GNU_SOURCE
    #include <poll.h>
    #include <time.h>
    int ppoll(struct pollfd *, nfds_t, const struct timespec *, const sigset_t *);
    """
    int ppoll(pollfd *, unsigned long, const void *, const void *)

cdef struct Route:
    uint64_t address
    uint32_t data
    bint valid

cdef class TcgVm:
    cdef CpuCore cpu
    cdef pollfd fds[LINES + 1]  # the timer's wake-up first, then an eventfd for each line
    cdef int gsis[LINES + 1]
    cdef bint level[LINES + 1]
    cdef int count
    cdef Route routes[ROUTES]
    cdef volatile bint closing
    cdef object thread
    cdef GuestMemory memory

    cdef void raise_line(self, int gsi, bint level) noexcept nogil
    cdef void serve(self) noexcept nogil

cdef void cpu_written(CpuCore cpu, uint64_t address, uint64_t length) noexcept nogil
