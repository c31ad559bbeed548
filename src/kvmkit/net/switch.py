"""A learning switch: frames between the VMs that are connected to its socket, which speak as kvmkit.net.stream does.

What a port has no room for is dropped, as a switch does: so a VM that is paused, or floods, holds no other up, and
neither has this process keep more than a quarter of a megabyte for it.
"""

import os
import socket

import cython
from cython.cimports.kvmkit.net.backend import LEAST_FRAME
from cython.cimports.kvmkit.net.stream import stream_flush, stream_free, stream_open, stream_receive, stream_send
from cython.cimports.kvmkit.net.switch import (
    EPOLL_CLOEXEC,
    EPOLL_CTL_ADD,
    EPOLL_CTL_DEL,
    EPOLL_CTL_MOD,
    EPOLLIN,
    EPOLLOUT,
    LISTENER,
    MOST_PORTS,
    PLACES,
    TURN,
    Place,
    Port,
    epoll_create1,
    epoll_ctl,
    epoll_event,
    epoll_wait,
)
from cython.cimports.libc.stdint import int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.posix.uio import iovec


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def address_at(data: cython.pointer(uint8_t)) -> uint64_t:
    value: uint64_t = 0
    i: cython.int
    for i in range(6):
        value = value << 8 | data[i]
    return value


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def place_of(address: uint64_t) -> uint32_t:
    mixed: uint64_t = address * cython.cast(uint64_t, 0x9E3779B97F4A7C15)
    return cython.cast(uint32_t, mixed >> 52) % PLACES


@cython.cclass
class Switch:
    """`listener` is a listening UNIX stream socket, which this closes. Connections of other users are refused."""

    def __init__(self, listener):
        self.listener = listener
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise OSError("epoll_create1")
        i: cython.int
        for i in range(MOST_PORTS):
            self.ports[i].stream.fd = -1
        self.watch(listener.fileno(), LISTENER, EPOLLIN, EPOLL_CTL_ADD)

    def __dealloc__(self):
        i: cython.int
        for i in range(MOST_PORTS):
            stream_free(cython.address(self.ports[i].stream))

    def close(self) -> None:
        i: cython.int
        for i in range(MOST_PORTS):
            if self.ports[i].used:
                self.unplug(i)
        self.listener.close()
        if self.epoll >= 0:
            os.close(self.epoll)
            self.epoll = -1

    def watch(self, fd: cython.int, number: uint32_t, events: uint32_t, how: cython.int) -> None:
        event: epoll_event
        event.events = events
        event.data.u32 = number
        epoll_ctl(self.epoll, how, fd, cython.address(event))

    def accept(self) -> None:
        """Plug in whoever waits."""
        try:
            connection, _ = self.listener.accept()
        except OSError:
            return
        with connection:
            import struct

            _pid, uid, _gid = struct.unpack("3i", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
            i: cython.int = 0
            while i < MOST_PORTS and self.ports[i].used:
                i += 1
            if i == MOST_PORTS or uid not in (0, os.getuid()):
                return
            if not stream_open(cython.address(self.ports[i].stream), connection.fileno()):
                return
            self.ports[i].stream.fd = connection.detach()
        port = cython.address(self.ports[i])
        port.used = True
        port.dirty = port.watching = port.more = False
        port.received = port.sent = port.dropped = 0
        self.count += 1
        self.watch(port.stream.fd, i, EPOLLIN, EPOLL_CTL_ADD)

    def unplug(self, index: cython.int) -> None:
        port = cython.address(self.ports[index])
        self.watch(port.stream.fd, 0, 0, EPOLL_CTL_DEL)
        os.close(port.stream.fd)
        port.stream.fd = -1
        stream_free(cython.address(port.stream))
        port.used = False
        self.count -= 1
        i: cython.int
        for i in range(PLACES):
            if self.places[i].address and self.places[i].port == index:
                self.places[i].address = 0

    def counters(self) -> list:
        """(received, sent, dropped) in frames, of each port in use."""
        found = []
        i: cython.int
        for i in range(MOST_PORTS):
            if self.ports[i].used:
                found.append((self.ports[i].received, self.ports[i].sent, self.ports[i].dropped))
        return found

    def run(self, seconds: float) -> bool:
        """Work until a port comes or goes, or nothing happened for `seconds`; False: the latter."""
        milliseconds: cython.int = int(1000 * seconds)
        what: cython.int
        with cython.nogil:
            what = self.wait(milliseconds)
        if what == -1:
            return False
        if what == LISTENER:
            self.accept()
        else:
            self.unplug(what - LISTENER - 1)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def wait(self, milliseconds: cython.int) -> cython.int:
        """Forward frames. -1: nothing happened; LISTENER: somebody waits there; more: a port has gone."""
        events: epoll_event[MOST_PORTS]
        i: cython.int
        n: cython.int
        more: cython.bint = False
        while True:
            n = epoll_wait(self.epoll, events, MOST_PORTS, 0 if more else milliseconds)
            if n <= 0 and not more:
                return -1  # a signal too: who called this looks
            for i in range(n):  # first, so that who was there before a frame gets it
                if events[i].data.u32 == LISTENER:
                    return LISTENER
            for i in range(n):
                self.ports[events[i].data.u32].more = True
            more = False
            for i in range(MOST_PORTS):
                if self.ports[i].used and self.ports[i].more:
                    self.ports[i].more = self.turn(i)
                    more = more or self.ports[i].more
            self.settle()
            for i in range(MOST_PORTS):
                if self.ports[i].used and self.ports[i].stream.failure != cython.NULL:
                    return LISTENER + 1 + i

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def turn(self, index: cython.int) -> cython.bint:
        """Forward what a port sent, up to its share. True: there may be more, already here."""
        frame: cython.pointer(uint8_t)
        port: cython.pointer(Port) = cython.address(self.ports[index])
        if port.watching:
            port.dirty = True
        _i: cython.int
        for _i in range(TURN):
            got: int64_t = stream_receive(cython.address(port.stream), cython.address(frame))
            if got <= 0:
                return False
            port.received += 1
            self.forward(index, frame, got)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def forward(self, index: cython.int, frame: cython.pointer(uint8_t), length: uint64_t) -> cython.void:
        if length < LEAST_FRAME:
            self.ports[index].dropped += 1
            return
        source: uint64_t = address_at(frame + 6)
        place: cython.pointer(Place)
        if not frame[6] & 1 and source:
            place = cython.address(self.places[place_of(source)])
            place.address = source
            place.port = index
        if not frame[0] & 1:
            target: uint64_t = address_at(frame)
            place = cython.address(self.places[place_of(target)])
            if place.address == target and target:
                if place.port != index:
                    self.give(place.port, frame, length)
                return
        i: cython.int
        for i in range(MOST_PORTS):
            if self.ports[i].used and i != index:
                self.give(i, frame, length)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def give(self, index: cython.int, frame: cython.pointer(uint8_t), length: uint64_t) -> cython.void:
        part: iovec
        part.iov_base = frame
        part.iov_len = length
        port: cython.pointer(Port) = cython.address(self.ports[index])
        if port.stream.fd >= 0 and stream_send(cython.address(port.stream), cython.address(part), 1, length) > 0:
            port.sent += 1
            port.dirty = True
        else:
            port.dropped += 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def settle(self) -> cython.void:
        """Pass on what was gathered, and watch for room where there is none."""
        event: epoll_event
        i: cython.int
        for i in range(MOST_PORTS):
            port: cython.pointer(Port) = cython.address(self.ports[i])
            if not port.used or not port.dirty:
                continue
            left: cython.bint = not stream_flush(cython.address(port.stream))
            port.dirty = False
            if left != port.watching:
                port.watching = left
                event.events = EPOLLIN | EPOLLOUT if left else EPOLLIN
                event.data.u32 = i
                epoll_ctl(self.epoll, EPOLL_CTL_MOD, port.stream.fd, cython.address(event))
