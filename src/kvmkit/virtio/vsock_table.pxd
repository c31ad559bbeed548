from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

cdef extern from "<unistd.h>" nogil:
    int close_fd "close"(int)

cdef enum:
    CONNECTIONS = 512  # at once: with what is kept of each, 64 MiB is the most that a guest can have us keep
    HASH = 1024

cdef enum:  # a connection's state
    FREE = 0
    GREETING = 1  # the host is to say CONNECT
    REQUESTED = 2  # the guest is to answer
    OPEN = 3
    CLOSING = 4  # the host has gone, and the guest is to agree
    LINGERING = 5  # the guest has gone, and the host is to read the rest

cdef struct Connection:
    int fd
    int state
    int next  # in its hash chain, or the free list; -1: the last
    int next_waiting
    uint32_t generation
    uint32_t guest_port
    uint32_t host_port
    uint32_t sent  # bytes to the guest, modulo 2**32 as are the next four
    uint32_t guest_room
    uint32_t guest_taken
    uint32_t taken  # bytes of the guest's that the host's program has
    uint32_t received
    uint32_t told  # `taken` as the guest knows it
    uint8_t to_send
    uint8_t guest_shut, host_shut
    bint waiting  # in the list of those that have something for the guest
    bint readable
    bint gone  # the host's end is closed
    uint8_t *buffer
    uint32_t head
    uint32_t length
    int64_t deadline  # 0: none

cdef struct Table:
    Connection connections[CONNECTIONS]
    int heads[HASH]
    int free  # -1: none
    int first_waiting, last_waiting
    int count
    int epoll
    int64_t timer  # the first of the deadlines; 0: there is none

cdef Table *table_new() noexcept nogil
cdef void table_free(Table *t) noexcept nogil
cdef Connection *table_find(Table *t, uint32_t guest_port, uint32_t host_port) noexcept nogil
cdef Connection *table_make(Table *t, int fd, int state) noexcept nogil
cdef void table_insert(Table *t, Connection *c, uint32_t guest_port, uint32_t host_port) noexcept nogil
cdef void table_remove(Table *t, Connection *c) noexcept nogil
cdef void table_drop(Table *t, Connection *c) noexcept nogil
cdef void table_drop_all(Table *t) noexcept nogil
cdef void table_timed(Table *t, Connection *c, int64_t seconds) noexcept nogil
cdef void table_wait_for_guest(Table *t, Connection *c) noexcept nogil
cdef void table_tell(Table *t, Connection *c, uint8_t what) noexcept nogil
