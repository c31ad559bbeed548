from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from kvmkit.virtio.device cimport VirtioDevice
from kvmkit.virtio.lane cimport Lane
from kvmkit.virtio.ring cimport Chain, VirtQueue
from kvmkit.virtio.sockets cimport epoll_event, sockaddr_un
from kvmkit.virtio.vsock_table cimport Connection, Table

cdef enum:
    QUEUE = 128
    HEADER_BYTES = 44
    BUFFER = 131072  # bytes of a connection that its reader on the host has not taken: the credit that a guest has
    STRAYS = 64  # answers to what belongs to no connection, waiting for a receive buffer
    EVENTS = 64
    LINE = 32  # bytes of "CONNECT port\n", at most
    TURN = 64  # packets of the guest's taken before others have their turn
    LISTENER = 0xFFFFFF
    HOST = 2
    PRIVILEGED = 1023  # the last of the ports that only root may use in a guest of Linux
    FIRST_PORT = 1 << 30  # of the host's, for connections that begin there
    LAST_PORT = 0x7FFFFFFF
    TOLD = 8

cdef enum:  # op, virtio 1.2, 5.10.6
    OP_REQUEST = 1
    OP_RESPONSE = 2
    OP_RST = 3
    OP_SHUTDOWN = 4
    OP_RW = 5
    OP_CREDIT_UPDATE = 6
    OP_CREDIT_REQUEST = 7
    TYPE_STREAM = 1
    SHUT_RECEIVE = 1
    SHUT_SEND = 2
    SHUT_BOTH = 3

cdef enum:  # what is to be sent to the guest
    SEND_REQUEST = 1
    SEND_RESPONSE = 2
    SEND_CREDIT = 4
    SEND_SHUTDOWN = 8
    SEND_RST = 16

cdef packed struct Header:
    uint64_t src_cid
    uint64_t dst_cid
    uint32_t src_port
    uint32_t dst_port
    uint32_t length
    uint16_t type
    uint16_t op
    uint32_t flags
    uint32_t buf_alloc
    uint32_t fwd_cnt

cdef class Vsock(VirtioDevice):
    cdef readonly uint64_t cid
    cdef readonly bytes path
    cdef uint32_t reserved_ports[8]
    cdef int reserved_count
    cdef int listener
    cdef Table *t
    cdef Chain *chain
    cdef iovec *iov
    cdef Header strays[STRAYS]
    cdef int stray_first, stray_count
    cdef uint32_t next_port
    cdef bint restored  # the guest is to be told that its connections are gone
    cdef int complaints
    cdef VirtQueue *rx
    cdef VirtQueue *tx
    cdef sockaddr_un address
    cdef int path_length
    cdef epoll_event events[EVENTS]

    cdef void refuse(self, const Header *header) noexcept nogil
    cdef void complain(self, const char *why) noexcept nogil

    cdef void accept(self) noexcept nogil
    cdef void greet(self, Connection *c) noexcept nogil
    cdef void happened(self, Connection *c, uint32_t events) noexcept nogil
    cdef void expire(self) noexcept nogil

    cdef bint take(self, Chain *chain) noexcept nogil
    cdef void requested(self, const Header *header) noexcept nogil
    cdef bint data(self, Connection *c, Chain *chain, uint32_t length) noexcept nogil
    cdef void passed_on(self, Connection *c, uint32_t count) noexcept nogil
    cdef void empty(self, Connection *c) noexcept nogil
    cdef void shut_down(self, Connection *c, uint32_t flags) noexcept nogil
    cdef void host_gone(self, Connection *c) noexcept nogil

    cdef bint pump(self) noexcept nogil
    cdef uint32_t produce(self, Connection *c) noexcept nogil
    cdef int64_t read_data(self, Connection *c) noexcept nogil

cdef bint has_more(Connection *c) noexcept nogil
cdef uint32_t credit(Connection *c) noexcept nogil
