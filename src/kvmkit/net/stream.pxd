from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t
from posix.uio cimport iovec

from kvmkit.net.backend cimport Backend

cdef extern from "<sys/socket.h>" nogil:
    struct msghdr:
        void *msg_name
        unsigned int msg_namelen
        iovec *msg_iov
        size_t msg_iovlen
        void *msg_control
        size_t msg_controllen
        int msg_flags
    ssize_t sendmsg(int, const msghdr *, int)
    ssize_t send_bytes "send"(int, const void *, size_t, int)
    ssize_t recv_bytes "recv"(int, void *, size_t, int)
    int MSG_DONTWAIT
    int MSG_NOSIGNAL

cdef extern from "<arpa/inet.h>" nogil:
    uint32_t htonl(uint32_t)
    uint32_t ntohl(uint32_t)

cdef enum:
    PREFIX = 4  # the length before each frame, big-endian
    IN_ROOM = 1 << 18
    OUT_ROOM = 1 << 18  # what one guest can have waiting here; then its queue waits
    MOST_STREAM_FRAME = 65535  # passt takes a longer one for an error, and leaves
    DIRECT = 8192  # bytes from which on a frame is not copied first
    MOST_PARTS = 1024

cdef struct Stream:  # frames to and from one socket
    int fd
    uint8_t *in_
    uint64_t in_start, in_end
    uint8_t *out
    uint64_t out_start, out_end
    const char *failure

cdef bint stream_open(Stream *s, int fd) noexcept nogil
cdef void stream_free(Stream *s) noexcept nogil
cdef int stream_send(Stream *s, const iovec *iov, int count, uint64_t length) noexcept nogil
cdef bint stream_flush(Stream *s) noexcept nogil
cdef int64_t stream_receive(Stream *s, uint8_t **frame) noexcept nogil
cdef void stream_append(Stream *s, const iovec *iov, int count, uint64_t skip) noexcept nogil

cdef class StreamBackend(Backend):
    cdef Stream stream
    cdef object socket
