from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvmkit.net.stream cimport Stream

cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data:
        int fd
        uint32_t u32
    struct epoll_event:
        uint32_t events
        epoll_data data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    int EPOLL_CTL_MOD
    int EPOLL_CTL_DEL
    uint32_t EPOLLIN
    uint32_t EPOLLOUT

cdef enum:
    MOST_PORTS = 64
    PLACES = 4096  # addresses remembered; a guest that makes up more has those of others forgotten, and their frames flooded
    TURN = 128  # frames of one port before the next one's turn
    LISTENER = 1 << 16

cdef struct Port:
    Stream stream
    bint used
    bint dirty  # something waits to be flushed
    bint more  # it has not had its turn
    bint watching  # for EPOLLOUT
    uint64_t received
    uint64_t sent
    uint64_t dropped

cdef struct Place:
    uint64_t address  # 48 bits; 0: none
    int port

cdef class Switch:
    cdef int epoll
    cdef object listener
    cdef Port ports[MOST_PORTS]
    cdef Place places[PLACES]
    cdef readonly int count

    cdef bint turn(self, int index) noexcept nogil
    cdef void forward(self, int index, uint8_t *frame, uint64_t length) noexcept nogil
    cdef void give(self, int index, uint8_t *frame, uint64_t length) noexcept nogil
    cdef void settle(self) noexcept nogil
    cdef int wait(self, int milliseconds) noexcept nogil
