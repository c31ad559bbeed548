"""The connections of a vsock device: which there are, by their ports, and which have something for the guest."""

import cython
from cython.cimports.kvmkit.accel.tcg.threads import monotonic
from cython.cimports.kvmkit.virtio.sockets import (
    EPOLL_CLOEXEC,
    EPOLLET,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    epoll_create1,
    epoll_watch,
)
from cython.cimports.kvmkit.virtio.vsock_table import (
    CONNECTIONS,
    FREE,
    GREETING,
    HASH,
    LINGERING,
    Connection,
    Table,
    close_fd,
)
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_new() -> cython.pointer(Table):
    """NULL: no memory, or too many files are open."""
    t: cython.pointer(Table) = cython.cast(cython.pointer(Table), calloc(1, cython.sizeof(Table)))
    if t == cython.NULL:
        return cython.NULL
    i: cython.int
    for i in range(HASH):
        t.heads[i] = -1
    for i in range(CONNECTIONS):
        t.connections[i].fd = -1
        t.connections[i].next = i + 1 if i + 1 < CONNECTIONS else -1
    t.first_waiting = t.last_waiting = -1
    t.epoll = epoll_create1(EPOLL_CLOEXEC)
    if t.epoll < 0:
        free(t)
        return cython.NULL
    return t


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_free(t: cython.pointer(Table)) -> cython.void:
    if t != cython.NULL:
        table_drop_all(t)
        close_fd(t.epoll)
        free(t)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_find(t: cython.pointer(Table), guest_port: uint32_t, host_port: uint32_t) -> cython.pointer(Connection):
    i: cython.int = t.heads[(guest_port ^ host_port * 31) % HASH]
    while i >= 0:
        c: cython.pointer(Connection) = cython.address(t.connections[i])
        if c.guest_port == guest_port and c.host_port == host_port:
            return c
        i = c.next
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_make(t: cython.pointer(Table), fd: cython.int, state: cython.int) -> cython.pointer(Connection):
    """A connection around `fd`, which is closed when there is no place for it: then NULL."""
    if t.free < 0:
        close_fd(fd)
        return cython.NULL
    i: cython.int = t.free
    c: cython.pointer(Connection) = cython.address(t.connections[i])
    what: uint64_t = (cython.cast(uint64_t, c.generation) << 32) | cython.cast(uint64_t, i)
    if epoll_watch(t.epoll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, what) < 0:
        close_fd(fd)
        return cython.NULL
    t.free = c.next
    c.fd, c.state = fd, state
    c.next = c.next_waiting = -1
    c.sent = c.guest_room = c.guest_taken = c.taken = c.received = c.told = 0
    c.to_send = c.guest_shut = c.host_shut = 0
    c.waiting = c.readable = c.gone = False
    c.head = c.length = 0
    c.deadline = 0
    t.count += 1
    return c


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_insert(
    t: cython.pointer(Table), c: cython.pointer(Connection), guest_port: uint32_t, host_port: uint32_t
) -> cython.void:
    head: cython.pointer(cython.int) = cython.address(t.heads[(guest_port ^ host_port * 31) % HASH])
    c.guest_port, c.host_port = guest_port, host_port
    c.next = head[0]
    head[0] = cython.cast(cython.int, c - t.connections)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_remove(t: cython.pointer(Table), c: cython.pointer(Connection)) -> cython.void:
    """Packets for its ports are nobody's from now on."""
    if c.state == GREETING or c.state == LINGERING:
        return
    i: cython.int = cython.cast(cython.int, c - t.connections)
    at: cython.pointer(cython.int) = cython.address(t.heads[(c.guest_port ^ c.host_port * 31) % HASH])
    while at[0] != i:
        at = cython.address(t.connections[at[0]].next)
    at[0] = c.next


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_drop(t: cython.pointer(Table), c: cython.pointer(Connection)) -> cython.void:
    """It is over, on this side. One that waits for a receive buffer keeps its place until that comes."""
    table_remove(t, c)
    close_fd(c.fd)
    free(c.buffer)
    c.buffer = cython.NULL
    c.fd = -1
    c.state = FREE
    c.generation += 1
    c.deadline = 0
    t.count -= 1
    if not c.waiting:
        c.next = t.free
        t.free = cython.cast(cython.int, c - t.connections)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_drop_all(t: cython.pointer(Table)) -> cython.void:
    i: cython.int
    for i in range(CONNECTIONS):
        c: cython.pointer(Connection) = cython.address(t.connections[i])
        if c.state != FREE:
            c.waiting = False
            table_drop(t, c)
        elif c.waiting:
            c.waiting = False
            c.next = t.free
            t.free = i
    t.first_waiting = t.last_waiting = -1
    t.timer = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_timed(t: cython.pointer(Table), c: cython.pointer(Connection), seconds: int64_t) -> cython.void:
    c.deadline = monotonic() + seconds * 1000000000
    if t.timer == 0 or c.deadline < t.timer:
        t.timer = c.deadline


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_wait_for_guest(t: cython.pointer(Table), c: cython.pointer(Connection)) -> cython.void:
    """Put it in the list of those that have something for the guest."""
    if c.waiting:
        return
    i: cython.int = cython.cast(cython.int, c - t.connections)
    c.waiting = True
    c.next_waiting = -1
    if t.last_waiting >= 0:
        t.connections[t.last_waiting].next_waiting = i
    else:
        t.first_waiting = i
    t.last_waiting = i


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def table_tell(t: cython.pointer(Table), c: cython.pointer(Connection), what: uint8_t) -> cython.void:
    c.to_send |= what
    table_wait_for_guest(t, c)
