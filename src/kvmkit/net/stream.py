"""Frames over a stream socket, each behind its length: as passt, QEMU's `-netdev stream` and our switch speak.

The length is 4 bytes, big-endian. Frames that come together leave in one system call, and so do they arrive.
"""

from socket import SO_SNDBUF, SOL_SOCKET

import cython
from cython.cimports.kvmkit.net.backend import DROPPED, FULL, GONE, LEAST_FRAME, NOTHING, SENT
from cython.cimports.kvmkit.net.stream import (
    DIRECT,
    IN_ROOM,
    MOST_PARTS,
    MOST_STREAM_FRAME,
    MSG_DONTWAIT,
    MSG_NOSIGNAL,
    OUT_ROOM,
    PREFIX,
    Stream,
    htonl,
    msghdr,
    ntohl,
    recv_bytes,
    send_bytes,
    sendmsg,
)
from cython.cimports.libc.errno import EAGAIN, EINTR, errno
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free, malloc
from cython.cimports.libc.string import memcpy, memmove
from cython.cimports.posix.uio import iovec

SEND_BYTES: int = 1 << 18


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def stream_open(s: cython.pointer(Stream), fd: cython.int) -> cython.bint:
    """Begin with a connected socket. False: no memory; `stream_free` is due either way."""
    s.fd = fd
    s.in_start = s.in_end = s.out_start = s.out_end = 0
    s.failure = cython.NULL
    if s.in_ == cython.NULL:
        s.in_ = cython.cast(cython.pointer(uint8_t), malloc(IN_ROOM))
    if s.out == cython.NULL:
        s.out = cython.cast(cython.pointer(uint8_t), malloc(OUT_ROOM))
    return s.in_ != cython.NULL and s.out != cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def stream_free(s: cython.pointer(Stream)) -> cython.void:
    free(s.in_)
    free(s.out)
    s.in_ = s.out = cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def stream_append(
    s: cython.pointer(Stream), iov: cython.pointer(cython.const[iovec]), count: cython.int, skip: uint64_t
) -> cython.void:
    """Copy a message without its first `skip` bytes behind what waits; there must be room."""
    i: cython.int
    for i in range(count):
        size: uint64_t = iov[i].iov_len
        if skip >= size:
            skip -= size
            continue
        memcpy(s.out + s.out_end, cython.cast(cython.pointer(uint8_t), iov[i].iov_base) + skip, size - skip)
        s.out_end += size - skip
        skip = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def stream_send(
    s: cython.pointer(Stream), iov: cython.pointer(cython.const[iovec]), count: cython.int, length: uint64_t
) -> cython.int:
    """Take a frame of `length` bytes: SENT (perhaps kept for `stream_flush`), FULL or DROPPED."""
    prefix: uint32_t = htonl(cython.cast(uint32_t, length))
    parts: iovec[MOST_PARTS]
    message: msghdr
    if length < LEAST_FRAME or length > MOST_STREAM_FRAME or count >= MOST_PARTS or s.fd < 0:
        return DROPPED
    if s.out_end + PREFIX + length > OUT_ROOM:
        if not stream_flush(s) and s.out_start > 0:
            memmove(s.out, s.out + s.out_start, s.out_end - s.out_start)
            s.out_end -= s.out_start
            s.out_start = 0
        if s.out_end + PREFIX + length > OUT_ROOM:
            return FULL
    done: cython.Py_ssize_t = 0
    if length >= DIRECT and s.out_end == 0:
        i: cython.int
        parts[0].iov_base = cython.address(prefix)
        parts[0].iov_len = PREFIX
        for i in range(count):
            parts[1 + i] = iov[i]
        message.msg_name = cython.NULL
        message.msg_namelen = 0
        message.msg_iov = parts
        message.msg_iovlen = 1 + count
        message.msg_control = cython.NULL
        message.msg_controllen = 0
        message.msg_flags = 0
        done = sendmsg(s.fd, cython.address(message), MSG_DONTWAIT | MSG_NOSIGNAL)
        if done < 0:
            done = 0  # what it was, `stream_flush` finds again
        if cython.cast(uint64_t, done) == PREFIX + length:
            return SENT
    if done < PREFIX:
        memcpy(s.out + s.out_end, cython.cast(cython.pointer(uint8_t), cython.address(prefix)) + done, PREFIX - done)
        s.out_end += PREFIX - done
        done = PREFIX
    stream_append(s, iov, count, done - PREFIX)
    return SENT


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def stream_flush(s: cython.pointer(Stream)) -> cython.bint:
    """Pass on what waits. False: the socket takes no more now."""
    while s.out_start < s.out_end:
        done: cython.Py_ssize_t = send_bytes(
            s.fd, s.out + s.out_start, s.out_end - s.out_start, MSG_DONTWAIT | MSG_NOSIGNAL
        )
        if done < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                return False
            break  # the peer has gone, which `stream_receive` tells
        s.out_start += done
    s.out_start = s.out_end = 0
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def stream_receive(s: cython.pointer(Stream), frame: cython.pointer(cython.pointer(uint8_t))) -> int64_t:
    """Bytes of the next frame, which is at `*frame` until the next call; NOTHING; GONE."""
    length: uint32_t
    if s.fd < 0:
        return NOTHING
    while True:
        have: uint64_t = s.in_end - s.in_start
        if have >= PREFIX:
            memcpy(cython.address(length), s.in_ + s.in_start, PREFIX)
            length = ntohl(length)
            # One without end would have us wait, and keep, for ever.
            if length == 0 or length > MOST_STREAM_FRAME + 18:
                s.failure = "what it sends are no frames"
                return GONE
            if have >= PREFIX + length:
                frame[0] = s.in_ + s.in_start + PREFIX
                s.in_start += PREFIX + length
                return length
        if have == 0:
            s.in_start = s.in_end = 0
        elif IN_ROOM - s.in_start < PREFIX + MOST_STREAM_FRAME + 18:
            memmove(s.in_, s.in_ + s.in_start, have)
            s.in_start, s.in_end = 0, have
        got: cython.Py_ssize_t = recv_bytes(s.fd, s.in_ + s.in_end, IN_ROOM - s.in_end, MSG_DONTWAIT)
        if got == 0:
            s.failure = "its other end was closed"
            return GONE
        if got < 0:
            if errno == EINTR:
                continue
            if errno == EAGAIN:
                return NOTHING
            s.failure = "its socket failed"
            return GONE
        s.in_end += got


@cython.cclass
class StreamBackend(Backend):
    """Frames over `socket`, a connected stream socket, which this closes."""

    def __init__(self, socket, name: str = "socket"):
        Backend.__init__(self, name)
        self.stream.fd = -1
        self.socket = socket
        # Twice that, by the kernel's count, and twice what it has by itself: so we are woken half as often.
        socket.setsockopt(SOL_SOCKET, SO_SNDBUF, SEND_BYTES)
        if not stream_open(cython.address(self.stream), socket.fileno()):
            raise MemoryError

    def __dealloc__(self):
        stream_free(cython.address(self.stream))

    def close(self) -> None:
        self.stream.fd = -1
        self.socket.close()

    def fileno(self) -> int:
        return self.stream.fd

    @property
    def waiting(self) -> int:
        """Bytes that its socket has not taken."""
        return self.stream.out_end - self.stream.out_start

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def descriptor(self, pair: cython.int) -> cython.int:
        return self.stream.fd

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def send(
        self, pair: cython.int, iov: cython.pointer(cython.const[iovec]), count: cython.int, length: uint64_t
    ) -> cython.int:
        s: cython.pointer(Stream) = cython.address(self.stream)
        # A long one waits in the guest's memory until what is before it has left, and so is copied once only.
        if length >= DIRECT and s.out_start < s.out_end and not stream_flush(s):
            return FULL
        return stream_send(s, iov, count, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush(self, pair: cython.int) -> cython.bint:
        return stream_flush(cython.address(self.stream))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def receive(self, pair: cython.int, frame: cython.pointer(cython.pointer(uint8_t))) -> int64_t:
        got: int64_t = stream_receive(cython.address(self.stream), frame)
        if got == GONE:
            with cython.gil:
                self.failure = cython.cast(bytes, self.stream.failure).decode()
        return got
