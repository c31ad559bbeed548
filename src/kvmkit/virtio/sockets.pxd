# UNIX sockets and epoll as a lane uses them: nothing here may block.
from libc.stdint cimport uint32_t, uint64_t
from libc.string cimport memset
from posix.uio cimport iovec

cdef extern from "<sys/socket.h>" nogil:
    struct sockaddr:
        pass
    struct msghdr:
        iovec *msg_iov
        size_t msg_iovlen
    int socket(int, int, int)
    int connect(int, const sockaddr *, unsigned int)
    int accept4(int, sockaddr *, unsigned int *, int)
    int socket_shutdown "shutdown"(int, int)
    ssize_t recv(int, void *, size_t, int)
    ssize_t recvmsg(int, msghdr *, int)
    ssize_t sendmsg(int, const msghdr *, int)
    int AF_UNIX
    int SHUT_RD
    int SHUT_WR
    int SOCK_STREAM
    int SOCK_NONBLOCK
    int SOCK_CLOEXEC
    int MSG_DONTWAIT
    int MSG_NOSIGNAL
    int MSG_PEEK

cdef extern from "<sys/un.h>" nogil:
    struct sockaddr_un:
        unsigned short sun_family
        char sun_path[108]

cdef extern from "<sys/epoll.h>" nogil:
    union epoll_data_t:
        uint64_t u64
    struct epoll_event:
        uint32_t events
        epoll_data_t data
    int epoll_create1(int)
    int epoll_ctl(int, int, int, epoll_event *)
    int epoll_wait(int, epoll_event *, int, int)
    int EPOLL_CLOEXEC
    int EPOLL_CTL_ADD
    uint32_t EPOLLIN
    uint32_t EPOLLOUT
    uint32_t EPOLLRDHUP
    uint32_t EPOLLHUP
    uint32_t EPOLLERR
    uint32_t EPOLLET

cdef inline int unix_open() noexcept nogil:
    return socket(AF_UNIX, SOCK_STREAM | SOCK_NONBLOCK | SOCK_CLOEXEC, 0)

cdef inline int unix_connect(int fd, sockaddr_un *to) noexcept nogil:
    to.sun_family = AF_UNIX
    return connect(fd, <const sockaddr *>to, sizeof(sockaddr_un))

cdef inline int unix_accept(int listener) noexcept nogil:
    return accept4(listener, NULL, NULL, SOCK_NONBLOCK | SOCK_CLOEXEC)

cdef inline ssize_t send_parts(int fd, iovec *parts, int count) noexcept nogil:
    cdef msghdr message
    memset(&message, 0, sizeof(msghdr))
    message.msg_iov, message.msg_iovlen = parts, count
    return sendmsg(fd, &message, MSG_DONTWAIT | MSG_NOSIGNAL)

cdef inline ssize_t receive_parts(int fd, iovec *parts, int count) noexcept nogil:
    cdef msghdr message
    memset(&message, 0, sizeof(msghdr))
    message.msg_iov, message.msg_iovlen = parts, count
    return recvmsg(fd, &message, MSG_DONTWAIT)

cdef inline ssize_t send_bytes(int fd, void *data, size_t length) noexcept nogil:
    cdef iovec part
    part.iov_base, part.iov_len = data, length
    return send_parts(fd, &part, 1)

cdef inline int epoll_watch(int epoll, int fd, uint32_t events, uint64_t what) noexcept nogil:
    cdef epoll_event event
    event.events = events
    event.data.u64 = what
    return epoll_ctl(epoll, EPOLL_CTL_ADD, fd, &event)
