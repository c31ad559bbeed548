"""Sockets between the host and the guest. Source: virtio 1.2, 5.10; the host's side is that of Firecracker.

A program of the host's connects to the socket at `path`, writes "CONNECT port\\n", and reads "OK port\\n" when the
guest has taken the connection. A guest that connects to port P of the host (CID 2) gets what listens at `path`_P.

One lane does it all. Sockets are watched by an edge-triggered epoll; a connection that has something for the guest
waits in a list until there is a receive buffer. Nothing is ever kept but what the guest was given credit for.
"""

import os
import struct

import cython
from cython.cimports.kvmkit.accel.tcg.threads import monotonic
from cython.cimports.kvmkit.virtio.chain import (
    chain_free,
    chain_gather,
    chain_new,
    chain_read,
    chain_write,
    queue_break,
)
from cython.cimports.kvmkit.virtio.lane import POLLIN, Lane
from cython.cimports.kvmkit.virtio.queue import Queue, queue_get, queue_release, queue_unget
from cython.cimports.kvmkit.virtio.ring import Chain, VirtQueue
from cython.cimports.kvmkit.virtio.sockets import (
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    MSG_DONTWAIT,
    MSG_PEEK,
    SHUT_RD,
    SHUT_WR,
    epoll_wait,
    epoll_watch,
    receive_parts,
    recv,
    send_bytes,
    send_parts,
    socket_shutdown,
    unix_accept,
    unix_connect,
    unix_open,
)
from cython.cimports.kvmkit.virtio.vsock import (
    BUFFER,
    EVENTS,
    FIRST_PORT,
    HEADER_BYTES,
    HOST,
    LAST_PORT,
    LINE,
    LISTENER,
    OP_CREDIT_REQUEST,
    OP_CREDIT_UPDATE,
    OP_REQUEST,
    OP_RESPONSE,
    OP_RST,
    OP_RW,
    OP_SHUTDOWN,
    PRIVILEGED,
    QUEUE,
    SEND_CREDIT,
    SEND_REQUEST,
    SEND_RESPONSE,
    SEND_RST,
    SEND_SHUTDOWN,
    SHUT_BOTH,
    SHUT_RECEIVE,
    SHUT_SEND,
    STRAYS,
    TOLD,
    TURN,
    TYPE_STREAM,
    Header,
)
from cython.cimports.kvmkit.virtio.vsock_table import (
    CLOSING,
    CONNECTIONS,
    FREE,
    GREETING,
    LINGERING,
    OPEN,
    REQUESTED,
    Connection,
    close_fd,
    table_drop,
    table_drop_all,
    table_find,
    table_free,
    table_insert,
    table_make,
    table_new,
    table_remove,
    table_tell,
    table_timed,
    table_wait_for_guest,
)
from cython.cimports.libc.errno import EAGAIN, EINTR, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdio import snprintf
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.libc.string import memcmp
from cython.cimports.posix.uio import iovec

from kvmkit.errors import BadInput
from kvmkit.virtio.listening import PATH_BYTES, listen

KIND: int = 19
DRIVER: str = "CONFIG_VIRTIO_VSOCKETS (vmw_vsock_virtio_transport)"
STREAM: int = 1 << 0
HOST_CID: int = 2


@cython.cclass
class Vsock(VirtioDevice):
    """The guest has the address `cid` (3 or more). `path` is this side's socket; empty: there is none.

    A connection to one of the host ports `reserved` is let through only from a guest port below 1024, which no
    ordinary user of the guest can have.
    """

    def __init__(self, memory, cid: int, path: str = "", *, reserved=(), name: str = "vsock", log=None):
        self.listener = -1
        if not 3 <= cid < 0xFFFFFFFF:
            raise BadInput(f"a guest's CID is a number from 3 to 4294967294, not {cid}")
        self.cid = cid
        self.path = os.fsencode(path)
        if len(self.path) > PATH_BYTES - 11:
            raise BadInput(f"vsock {path}: a socket's path has at most {PATH_BYTES - 11} bytes here")
        self.path_length = len(self.path)
        for i, byte in enumerate(self.path):
            self.address.sun_path[i] = cython.cast(cython.char, byte)
        for port in reserved:
            self.reserved_ports[self.reserved_count] = port
            self.reserved_count += 1
        self.chain = chain_new(QUEUE)
        self.iov = cython.cast(cython.pointer(iovec), calloc(QUEUE, cython.sizeof(iovec)))
        self.t = table_new()
        if self.chain == cython.NULL or self.iov == cython.NULL or self.t == cython.NULL:
            raise MemoryError
        self.next_port = FIRST_PORT
        if path:
            self.listener = listen(path, "vsock")
            epoll_watch(self.t.epoll, self.listener, EPOLLIN | EPOLLET, LISTENER)
        VirtioDevice.__init__(
            self, memory, KIND, [QUEUE, QUEUE, QUEUE], name=name, driver=DRIVER, features=STREAM,
            config=struct.pack("<Q", cid), lanes=[[0, 1, 2]], log=log,
        )  # fmt: skip
        rx: Queue = self.queues[0]
        tx: Queue = self.queues[1]
        self.rx, self.tx = cython.address(rx.q), cython.address(tx.q)
        lane: Lane = self.lanes[0]
        lane.watch(0, self.t.epoll, POLLIN)

    def __dealloc__(self):
        table_free(self.t)
        free(self.iov)
        chain_free(self.chain)
        if self.listener >= 0:
            close_fd(self.listener)

    @property
    def connections(self) -> int:
        """How many there are now."""
        return self.t.count

    def close(self) -> None:
        VirtioDevice.close(self)
        if self.listener >= 0:
            close_fd(self.listener)
            self.listener = -1
            try:
                os.unlink(self.path)
            except OSError:
                pass

    def stopped(self) -> None:
        table_drop_all(self.t)
        self.stray_count = 0
        self.restored = False

    def restore(self, state: dict) -> None:
        VirtioDevice.restore(self, state)
        self.restored = True

    # On the lane's thread: what it is asked.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, lane: Lane) -> cython.bint:
        count: cython.int = epoll_wait(self.t.epoll, self.events, EVENTS, 0)
        i: cython.int
        for i in range(count):
            what: uint64_t = self.events[i].data.u64
            if what == LISTENER:
                self.accept()
                continue
            c: cython.pointer(Connection) = cython.address(self.t.connections[what & 0xFFFF])
            # One that was closed earlier in this round may be another one by now.
            if c.state != FREE and c.generation == cython.cast(uint32_t, what >> 32):
                self.happened(c, self.events[i].events)
        if self.t.timer and monotonic() >= self.t.timer:
            self.expire()
        return self.pump() or count > 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        if q == self.rx:
            self.pump()
        elif q == self.tx:
            turn: cython.int
            for _turn in range(TURN):
                # A guest that sends and never receives must not have us keep ever more answers.
                if self.stray_count == STRAYS:
                    q.wanted = False
                    return
                if queue_get(q, self.chain) <= 0 or not self.take(self.chain):
                    return
                queue_release(q, self.chain, 0)
        elif self.restored and queue_get(q, self.chain) > 0:
            event: uint32_t = 0  # VIRTIO_VSOCK_EVENT_TRANSPORT_RESET
            self.restored = False
            queue_release(q, self.chain, cython.cast(uint32_t, chain_write(self.chain, 0, cython.address(event), 4)))
        else:
            q.wanted = False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush(self, lane: Lane) -> cython.void:
        self.pump()
        lane.due = self.t.timer

    # Packets without a connection.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def refuse(self, header: cython.pointer(cython.const[Header])) -> cython.void:
        """Answer a packet that belongs to no connection."""
        if header.op == OP_RST or self.stray_count == STRAYS:
            return
        answer: cython.pointer(Header) = cython.address(
            self.strays[(self.stray_first + self.stray_count) % cython.cast(cython.int, STRAYS)]
        )
        self.stray_count += 1
        answer.src_cid = header.dst_cid
        answer.dst_cid = self.cid
        answer.src_port, answer.dst_port = header.dst_port, header.src_port
        answer.length = answer.flags = answer.buf_alloc = answer.fwd_cnt = 0
        answer.type = header.type
        answer.op = OP_RST

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def complain(self, why: cython.p_const_char) -> cython.void:
        """Say what the guest, or its peers, did, a few times at most."""
        if self.complaints >= TOLD:
            return
        self.complaints += 1
        with cython.gil:
            if self.log is not None:
                self.log(f"{self.name}: {cython.cast(bytes, why).decode()}")

    # What the host's programs do.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def accept(self) -> cython.void:
        while True:
            fd: cython.int = unix_accept(self.listener)
            if fd < 0:
                if errno == EINTR:
                    continue
                return
            c: cython.pointer(Connection) = table_make(self.t, fd, GREETING)
            if c != cython.NULL:
                table_timed(self.t, c, 10)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def greet(self, c: cython.pointer(Connection)) -> cython.void:
        """Read "CONNECT port\\n" and not a byte more, and ask the guest."""
        line: cython.char[LINE]
        got: cython.Py_ssize_t = recv(c.fd, line, LINE, MSG_PEEK | MSG_DONTWAIT)
        if got < 0 and (errno in (EAGAIN, EINTR)):
            return
        end: cython.Py_ssize_t = 0
        while end < got and line[end] != 10:
            end += 1
        if got <= 0 or (end == got and got == LINE) or (got >= 8 and memcmp(line, b"CONNECT ", 8) != 0):
            table_drop(self.t, c)
            return
        if end == got:
            return  # the rest is to come
        port: uint64_t = 0
        i: cython.Py_ssize_t
        for i in range(8, end):
            if line[i] < 48 or line[i] > 57 or port >> 32:
                table_drop(self.t, c)
                return
            port = port * 10 + cython.cast(uint64_t, line[i] - 48)
        if end <= 8 or port >> 32:
            table_drop(self.t, c)
            return
        recv(c.fd, line, end + 1, MSG_DONTWAIT)
        while table_find(self.t, cython.cast(uint32_t, port), self.next_port) != cython.NULL:
            self.next_port = self.next_port + 1 if self.next_port < LAST_PORT else FIRST_PORT
        table_insert(self.t, c, cython.cast(uint32_t, port), self.next_port)
        self.next_port = self.next_port + 1 if self.next_port < LAST_PORT else FIRST_PORT
        c.state = REQUESTED
        c.readable = True  # what came behind the line has had its event
        table_timed(self.t, c, 10)
        table_tell(self.t, c, SEND_REQUEST)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def happened(self, c: cython.pointer(Connection), events: uint32_t) -> cython.void:
        if c.state == GREETING:
            if events & (EPOLLIN | EPOLLHUP | EPOLLERR | EPOLLRDHUP):
                self.greet(c)
            return
        if events & (EPOLLHUP | EPOLLERR):
            c.gone = True
            if c.state == LINGERING:
                table_drop(self.t, c)
                return
            if c.state == REQUESTED:
                table_tell(self.t, c, SEND_RST)
                return
        if events & EPOLLOUT and c.length:
            self.empty(c)
            if c.state == FREE:
                return
        if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR) and c.state != LINGERING:
            c.readable = True
            table_wait_for_guest(self.t, c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def expire(self) -> cython.void:
        """Drop those who had their time."""
        now: int64_t = monotonic()
        self.t.timer = 0
        i: cython.int
        for i in range(CONNECTIONS):
            c: cython.pointer(Connection) = cython.address(self.t.connections[i])
            if c.state == FREE or c.deadline == 0:
                continue
            if c.deadline > now:
                if self.t.timer == 0 or c.deadline < self.t.timer:
                    self.t.timer = c.deadline
            elif c.state == GREETING:
                table_drop(self.t, c)
            else:
                c.deadline = 0
                table_tell(self.t, c, SEND_RST)

    # What the guest sends.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(self, chain: cython.pointer(Chain)) -> cython.bint:
        """One packet. False: it is malformed, and the queue is broken."""
        header: Header
        if chain.read_bytes < HEADER_BYTES:
            return queue_break(self.tx, "a packet without a header")
        chain_read(chain, 0, cython.address(header), HEADER_BYTES)
        if header.length > chain.read_bytes - HEADER_BYTES:
            return queue_break(self.tx, "a packet that is shorter than it says")
        if header.src_cid != self.cid:
            return True  # of nobody who could be answered
        if header.dst_cid != HOST or header.type != TYPE_STREAM:
            self.refuse(cython.address(header))
            return True
        c: cython.pointer(Connection) = table_find(self.t, header.src_port, header.dst_port)
        if c == cython.NULL:
            if header.op == OP_REQUEST:
                self.requested(cython.address(header))
            else:
                self.refuse(cython.address(header))
            return True
        c.guest_room, c.guest_taken = header.buf_alloc, header.fwd_cnt
        if header.op == OP_RST:
            if c.state == OPEN and c.guest_shut == SHUT_BOTH and c.length:
                table_remove(self.t, c)
                c.state = LINGERING
                c.to_send = 0
            else:
                table_drop(self.t, c)
        elif header.op == OP_RESPONSE and c.state == REQUESTED:
            text: cython.char[24]
            c.state = OPEN
            c.deadline = 0
            send_bytes(c.fd, text, snprintf(text, 24, "OK %u\n", c.host_port))  # an empty socket takes it
            table_wait_for_guest(self.t, c)
        elif header.op == OP_SHUTDOWN and c.state != REQUESTED:
            self.shut_down(c, header.flags)
        elif header.op == OP_RW and c.state != REQUESTED:
            return self.data(c, chain, header.length)
        elif header.op == OP_CREDIT_UPDATE and c.state != REQUESTED:
            if c.readable:
                table_wait_for_guest(self.t, c)
        elif header.op == OP_CREDIT_REQUEST and c.state != REQUESTED:
            table_tell(self.t, c, SEND_CREDIT)
        else:
            table_tell(self.t, c, SEND_RST)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def requested(self, header: cython.pointer(cython.const[Header])) -> cython.void:
        """The guest wants a connection to what listens at `path`_PORT."""
        i: cython.int
        allowed: cython.bint = self.path_length > 0
        for i in range(self.reserved_count):
            if self.reserved_ports[i] == header.dst_port and header.src_port > PRIVILEGED:
                allowed = False
        fd: cython.int = unix_open() if allowed else -1
        if fd >= 0:
            snprintf(self.address.sun_path + self.path_length, 12, "_%u", header.dst_port)
            if unix_connect(fd, cython.address(self.address)) < 0:
                close_fd(fd)
                fd = -1
        c: cython.pointer(Connection) = cython.NULL
        if fd >= 0:
            c = table_make(self.t, fd, OPEN)
        if c == cython.NULL:
            self.refuse(header)
            return
        table_insert(self.t, c, header.src_port, header.dst_port)
        c.guest_room, c.guest_taken = header.buf_alloc, header.fwd_cnt
        table_tell(self.t, c, SEND_RESPONSE)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def data(self, c: cython.pointer(Connection), chain: cython.pointer(Chain), length: uint32_t) -> cython.bint:
        if length > BUFFER - (c.received - c.told):
            self.complain("the guest sent more than it had credit for")
            table_tell(self.t, c, SEND_RST)
            return True
        c.received += length
        if c.state != OPEN or c.gone or c.guest_shut & SHUT_SEND:
            self.passed_on(c, length)  # nobody reads it
            return True
        done: uint32_t = 0
        if c.length == 0 and length:
            parts: cython.int = chain_gather(chain, 0, chain.readable, HEADER_BYTES, length, self.iov)
            sent: cython.Py_ssize_t = send_parts(c.fd, self.iov, parts)
            if sent < 0 and errno != EAGAIN and errno != EINTR:
                self.host_gone(c)
                return True
            if sent > 0:
                done = cython.cast(uint32_t, sent)
                self.passed_on(c, done)
        if done < length:
            if c.buffer == cython.NULL:
                c.buffer = cython.cast(cython.pointer(uint8_t), malloc(BUFFER))
                if c.buffer == cython.NULL:
                    table_tell(self.t, c, SEND_RST)
                    return True
            tail: uint32_t = (c.head + c.length) % BUFFER
            first: uint32_t = min(length - done, BUFFER - tail)
            chain_read(chain, HEADER_BYTES + done, c.buffer + tail, first)
            chain_read(chain, HEADER_BYTES + done + first, c.buffer, length - done - first)
            c.length += length - done
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def passed_on(self, c: cython.pointer(Connection), count: uint32_t) -> cython.void:
        c.taken += count
        if c.taken - c.told >= BUFFER // 4 and c.state == OPEN:
            table_tell(self.t, c, SEND_CREDIT)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def empty(self, c: cython.pointer(Connection)) -> cython.void:
        """Pass on what is kept, as far as the socket takes it."""
        while c.length:
            sent: cython.Py_ssize_t = send_bytes(c.fd, c.buffer + c.head, min(c.length, BUFFER - c.head))
            if sent < 0 and errno == EINTR:
                continue
            if sent < 0 and errno == EAGAIN:
                return
            if sent <= 0:
                self.host_gone(c)
                return
            c.head = (c.head + cython.cast(uint32_t, sent)) % BUFFER
            c.length -= cython.cast(uint32_t, sent)
            self.passed_on(c, cython.cast(uint32_t, sent))
        free(c.buffer)
        c.buffer = cython.NULL
        c.head = 0
        if c.state == LINGERING:
            table_drop(self.t, c)
        elif c.guest_shut:
            self.shut_down(c, 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def shut_down(self, c: cython.pointer(Connection), flags: uint32_t) -> cython.void:
        """The guest will not send, or receive, any more."""
        c.guest_shut |= cython.cast(uint8_t, flags & SHUT_BOTH)
        if c.guest_shut & SHUT_RECEIVE:
            c.readable = False
            socket_shutdown(c.fd, SHUT_RD)
        if c.guest_shut & SHUT_SEND and c.length == 0:
            socket_shutdown(c.fd, SHUT_WR)
        if c.guest_shut == SHUT_BOTH and c.length == 0:
            table_tell(self.t, c, SEND_RST)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def host_gone(self, c: cython.pointer(Connection)) -> cython.void:
        """The host's program takes nothing any more."""
        c.gone = True
        c.taken += c.length
        c.length = 0
        if c.state == LINGERING:
            table_drop(self.t, c)
            return
        c.readable = True  # what it wrote before it went is still the guest's
        table_wait_for_guest(self.t, c)

    # What the guest receives.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pump(self) -> cython.bint:
        """Fill receive buffers while there are any and something to send. False: nothing was sent."""
        any_: cython.bint = False
        turn: cython.int
        while self.stray_count or self.t.first_waiting >= 0:
            if queue_get(self.rx, self.chain) <= 0:
                self.rx.wanted = True  # it is to ring when it has buffers
                return any_
            if self.chain.write_bytes <= HEADER_BYTES:
                queue_break(self.rx, "a receive buffer without room for a byte behind a packet's header")
                return any_
            any_ = True
            if self.stray_count:
                chain_write(self.chain, 0, cython.address(self.strays[self.stray_first]), HEADER_BYTES)
                self.stray_first = (self.stray_first + 1) % cython.cast(cython.int, STRAYS)
                self.stray_count -= 1
                self.tx.wanted = True
                queue_release(self.rx, self.chain, HEADER_BYTES)
                continue
            c: cython.pointer(Connection) = cython.address(self.t.connections[self.t.first_waiting])
            self.t.first_waiting = c.next_waiting
            if self.t.first_waiting < 0:
                self.t.last_waiting = -1
            c.waiting = False
            if c.state == FREE:  # it ended while it waited
                c.next = self.t.free
                self.t.free = cython.cast(cython.int, c - self.t.connections)
                queue_unget(self.rx, self.chain)
                continue
            written: uint32_t = self.produce(c)
            if written == 0:
                queue_unget(self.rx, self.chain)
            else:
                queue_release(self.rx, self.chain, written)
            if c.state != FREE and has_more(c):
                table_wait_for_guest(self.t, c)
        self.rx.wanted = False
        return any_

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def produce(self, c: cython.pointer(Connection)) -> uint32_t:
        """Put the next packet of a connection in the receive buffer; its bytes, 0: there is none now."""
        header: Header
        length: int64_t = 0
        header.flags = 0
        if c.to_send & SEND_RST:
            header.op = OP_RST
        elif c.to_send & SEND_REQUEST:
            header.op = OP_REQUEST
            c.to_send &= ~SEND_REQUEST
        elif c.to_send & SEND_RESPONSE:
            header.op = OP_RESPONSE
            c.to_send &= ~SEND_RESPONSE
        else:
            if c.state == OPEN and c.readable and not c.to_send & SEND_SHUTDOWN:
                length = self.read_data(c)
            if length > 0:
                header.op = OP_RW
                c.sent += cython.cast(uint32_t, length)
            elif c.to_send & SEND_SHUTDOWN:
                header.op = OP_SHUTDOWN
                header.flags = c.host_shut
                c.to_send &= ~SEND_SHUTDOWN
                if c.host_shut == SHUT_BOTH:
                    c.state = CLOSING
                    table_timed(self.t, c, 10)
            elif c.to_send & SEND_CREDIT:
                header.op = OP_CREDIT_UPDATE
            else:
                return 0
            c.to_send &= ~SEND_CREDIT
        header.src_cid = HOST
        header.dst_cid = self.cid
        header.src_port, header.dst_port = c.host_port, c.guest_port
        header.length = cython.cast(uint32_t, length)
        header.type = TYPE_STREAM
        header.buf_alloc = BUFFER
        header.fwd_cnt = c.told = c.taken
        chain_write(self.chain, 0, cython.address(header), HEADER_BYTES)
        if header.op == OP_RST:
            table_drop(self.t, c)
        return HEADER_BYTES + cython.cast(uint32_t, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_data(self, c: cython.pointer(Connection)) -> int64_t:
        """Read from the host's program into the receive buffer; 0: there is nothing, or its end was noted."""
        room: uint64_t = min(self.chain.write_bytes - HEADER_BYTES, cython.cast(uint64_t, credit(c)))
        if room == 0:
            return 0
        parts: cython.int = chain_gather(self.chain, 0, self.chain.count, HEADER_BYTES, room, self.iov)
        got: cython.Py_ssize_t = receive_parts(c.fd, self.iov, parts)
        if got > 0:
            return got
        if got < 0 and (errno in (EAGAIN, EINTR)):
            if errno == EAGAIN:
                c.readable = False
            return 0
        c.readable = False
        ended: uint8_t = SHUT_BOTH if c.gone or got < 0 else SHUT_SEND
        if ended & ~c.host_shut:
            c.host_shut |= ended
            c.to_send |= SEND_SHUTDOWN
        return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def credit(c: cython.pointer(Connection)) -> uint32_t:
    """Bytes that the guest has room for."""
    flight: uint32_t = c.sent - c.guest_taken
    return c.guest_room - flight if flight < c.guest_room else 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def has_more(c: cython.pointer(Connection)) -> cython.bint:
    return c.to_send != 0 or (c.state == OPEN and c.readable and credit(c) > 0)
