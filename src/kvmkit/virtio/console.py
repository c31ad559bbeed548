"""Serial ports with names, and consoles. Source: virtio 1.2, 5.3.

Each port is a UNIX socket of the host's, for one program at a time. What the guest writes while nobody is connected is
lost, as on a serial line; what a program does not read waits in the guest's queue, and nothing is kept here.
"""

import os
import struct

import cython
from cython.cimports.kvmkit.memory.atomics import ACQUIRE, RELEASE, exchange32, load32, store32
from cython.cimports.kvmkit.virtio.chain import chain_free, chain_new, chain_read, chain_write, queue_break
from cython.cimports.kvmkit.virtio.console import (
    CONSOLE_PORT,
    CONTROL_IN,
    CONTROL_OUT,
    DEVICE_ADD,
    DEVICE_READY,
    EVENTS,
    NAME_BYTES,
    PORT_NAME,
    PORT_OPEN,
    PORT_READY,
    PORTS,
    QUEUE,
    RESIZE,
    TELL_ADD,
    TELL_CONSOLE,
    TELL_NAME,
    TELL_OPEN,
    TELL_SIZE,
    TURN,
    Control,
    Port,
    close_fd,
)
from cython.cimports.kvmkit.virtio.lane import POLLIN, Lane
from cython.cimports.kvmkit.virtio.queue import queue_get, queue_release, queue_unget
from cython.cimports.kvmkit.virtio.ring import VirtQueue
from cython.cimports.kvmkit.virtio.sockets import (
    EPOLL_CLOEXEC,
    EPOLLERR,
    EPOLLET,
    EPOLLHUP,
    EPOLLIN,
    EPOLLOUT,
    EPOLLRDHUP,
    epoll_create1,
    epoll_wait,
    epoll_watch,
    receive_parts,
    send_bytes,
    unix_accept,
)
from cython.cimports.libc.errno import EAGAIN, EINTR, errno
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t

from kvmkit.errors import BadInput, HostError
from kvmkit.virtio.listening import listen

KIND: int = 3
DRIVER: str = "CONFIG_VIRTIO_CONSOLE (virtio_console)"
SIZE: int = 1 << 0
MULTIPORT: int = 1 << 1
MOST_PORTS: int = PORTS
CONSOLE: str = "hvc0"
"""The name of a port that is a console; the guest's kernel has it as /dev/hvc0."""


@cython.cclass
class Console(VirtioDevice):
    """`ports` are (name, path of its socket). The one named `hvc0`, if there is one, is a console, and has to be first.

    BadInput for names and paths that can't be.
    """

    def __init__(self, memory, ports, *, name: str = "console", log=None):
        i: cython.int
        self.epoll = -1
        for i in range(PORTS):
            self.ports[i].listener = self.ports[i].fd = -1
        self.paths = []
        names = [each for each, _ in ports]
        if not 0 < len(ports) <= MOST_PORTS:
            raise BadInput(f"a console device has 1 to {MOST_PORTS} ports, not {len(ports)}")
        if len(set(names)) < len(names):
            raise BadInput("two ports of a console device have the same name")
        self.chain = chain_new(QUEUE)
        if self.chain == cython.NULL:
            raise MemoryError
        self.epoll = epoll_create1(EPOLL_CLOEXEC)
        if self.epoll < 0:
            raise HostError("console: too many files are open")
        self.columns, self.rows = 80, 25
        for number, (each, path) in enumerate(ports):
            self._add_port(number, each, path)
        VirtioDevice.__init__(
            self, memory, KIND, [QUEUE] * (2 + 2 * self.count), name=name, driver=DRIVER, features=SIZE | MULTIPORT,
            config=self._config(), lanes=[list(range(2 + 2 * self.count))], log=log,
        )  # fmt: skip
        lane: Lane = self.lanes[0]
        lane.watch(0, self.epoll, POLLIN)

    def _add_port(self, number: cython.int, name: str, path: str) -> None:
        p: cython.pointer(Port) = cython.address(self.ports[number])
        text = name.encode()
        if not 0 < len(text) < NAME_BYTES or not name.isprintable() or "/" in name:
            raise BadInput(f"--console-port {name}: a port's name has 1 to {NAME_BYTES - 1} bytes, and no /")
        for i, byte in enumerate(text):
            p.name[i] = cython.cast(cython.char, byte)
        p.name_length = len(text)
        p.is_console = name == CONSOLE
        p.listener = listen(path, "--console-port")
        self.count += 1
        self.paths.append(path)
        epoll_watch(self.epoll, p.listener, EPOLLIN | EPOLLET, number)

    def _config(self) -> bytes:
        return struct.pack("<HHII", self.columns, self.rows, self.count, 0)

    def __dealloc__(self):
        i: cython.int
        chain_free(self.chain)
        for i in range(PORTS):
            if self.ports[i].listener >= 0:
                close_fd(self.ports[i].listener)
            if self.ports[i].fd >= 0:
                close_fd(self.ports[i].fd)
        if self.epoll >= 0:
            close_fd(self.epoll)

    def close(self) -> None:
        VirtioDevice.close(self)
        i: cython.int
        for i in range(self.count):
            if self.ports[i].listener >= 0:
                close_fd(self.ports[i].listener)
                self.ports[i].listener = -1
                try:
                    os.unlink(self.paths[i])
                except OSError:
                    pass
            if self.ports[i].fd >= 0:
                close_fd(self.ports[i].fd)
                self.ports[i].fd = -1

    def stopped(self) -> None:
        i: cython.int
        for i in range(self.count):
            p: cython.pointer(Port) = cython.address(self.ports[i])
            if p.gone and p.fd >= 0:
                self.hang_up(p)  # else nobody could connect until the guest opens this port again
            p.ready = p.open = False
            p.tell = 0
            p.sent = 0

    def reset_queue(self, index: int) -> None:
        with self.lock:
            lane: Lane = self.lanes[0]
            lane.hold()
            if index % 2 and index != CONTROL_OUT:  # how much of its first chain was sent: that one is no more
                self.ports[(index - 2) // 2 if index > CONTROL_OUT else 0].sent = 0
            VirtioDevice.reset_queue(self, index)

    def state(self) -> dict:
        saved = VirtioDevice.state(self)
        saved["ports"] = [(bool(self.ports[i].ready), bool(self.ports[i].open)) for i in range(self.count)]
        return saved

    def restore(self, state: dict) -> None:
        from kvmkit.devices.saved import checked
        from kvmkit.virtio.saved import ConsoleState

        saved = checked(state, ConsoleState, self.name)
        if len(saved.ports) != self.count:
            raise BadInput(f"saved state of {self.name}: it has other ports")
        VirtioDevice.restore(self, state)
        for i, (ready, opened) in enumerate(saved.ports):
            self.ports[i].ready, self.ports[i].open = ready, opened
            self.ports[i].tell = TELL_OPEN if ready else 0  # whoever was connected is not any more

    # For the machine.

    def resize(self, columns: int, rows: int) -> None:
        """Tell the guest the size of its consoles' terminal."""
        self.columns, self.rows = min(max(columns, 0), 0xFFFF), min(max(rows, 0), 0xFFFF)
        self.set_config(self._config())
        store32(cython.address(self.tell_size), 1, RELEASE)
        os.eventfd_write(self.queues[0].doorbell, 1)

    def connected(self) -> list:
        """Whether a program of the host's has each port."""
        return [self.ports[i].fd >= 0 for i in range(self.count)]

    # On the lane's thread.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def multiport(self) -> cython.bint:
        return (self.accepted & 2) != 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def queue(self, lane: Lane, port: cython.int, out: cython.bint) -> cython.pointer(VirtQueue):
        """A port's queue: from the guest with `out`, else to it."""
        return lane.queues[(2 * port + 2 if port else 0) + (1 if out else 0)]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, lane: Lane) -> cython.bint:
        count: cython.int = epoll_wait(self.epoll, self.events, EVENTS, 0)
        i: cython.int
        for i in range(count):
            what: uint64_t = self.events[i].data.u64
            self.happened(lane, cython.cast(cython.int, what & 0xFF), what, self.events[i].events)
        if load32(cython.address(self.tell_size), ACQUIRE) and exchange32(cython.address(self.tell_size), 0, ACQUIRE):
            for i in range(self.count):
                if self.ports[i].is_console:
                    self.ports[i].tell |= TELL_SIZE
        worked: cython.bint = self.pump_control(lane)
        for i in range(self.count):
            if self.pump(lane, i):
                worked = True
        return worked or count > 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        i: cython.int = q.index
        number: cython.int = (i - 2) // 2 if i > CONTROL_OUT else 0
        if i == CONTROL_IN:
            self.pump_control(lane)
        elif i == CONTROL_OUT:
            self.take(q, cython.NULL)
            self.pump_control(lane)
        elif i % 2:
            self.take(q, cython.address(self.ports[number]))
        else:
            self.pump(lane, number)

    # The host's programs.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def happened(self, lane: Lane, number: cython.int, what: uint64_t, events: uint32_t) -> cython.void:
        p: cython.pointer(Port) = cython.address(self.ports[number])
        if not what >> 8:
            self.accept(p)
            self.queue(lane, number, True).wanted = True
            return
        if p.fd < 0 or cython.cast(uint32_t, what >> 32) != p.generation:
            return  # of one that was hung up earlier in this round
        if events & (EPOLLHUP | EPOLLERR):
            p.gone = True
        if p.gone and not p.open:
            self.hang_up(p)  # nobody in the guest would read its last words
            return
        if events & (EPOLLIN | EPOLLRDHUP | EPOLLHUP | EPOLLERR):
            p.readable = True
        if events & (EPOLLOUT | EPOLLHUP | EPOLLERR):
            self.queue(lane, number, True).wanted = True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def accept(self, p: cython.pointer(Port)) -> cython.void:
        """Take the first that connects; others are hung up on while it is there."""
        number: uint64_t = cython.cast(uint64_t, p - cython.address(self.ports[0]))
        while True:
            fd: cython.int = unix_accept(p.listener)
            if fd < 0:
                if errno == EINTR:
                    continue
                return
            if p.fd >= 0:
                close_fd(fd)
                continue
            p.generation += 1
            what: uint64_t = cython.cast(uint64_t, p.generation) << 32 | 1 << 8 | number
            if epoll_watch(self.epoll, fd, EPOLLIN | EPOLLOUT | EPOLLRDHUP | EPOLLET, what) < 0:
                close_fd(fd)
                continue
            p.fd = fd
            p.gone = p.readable = False
            p.sent = 0
            p.tell |= TELL_OPEN

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def hang_up(self, p: cython.pointer(Port)) -> cython.void:
        close_fd(p.fd)
        p.fd = -1
        p.readable = False
        p.sent = 0
        p.tell |= TELL_OPEN

    # To the guest.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pump(self, lane: Lane, number: cython.int) -> cython.bint:
        """Fill a port's receive buffers. False: there was nothing to do."""
        p: cython.pointer(Port) = cython.address(self.ports[number])
        q: cython.pointer(VirtQueue) = self.queue(lane, number, False)
        any_: cython.bint = False
        takes: cython.bint = p.open or p.is_console or not self.multiport()
        while p.fd >= 0 and p.readable and takes:
            if queue_get(q, self.chain) <= 0:
                q.wanted = True
                return any_
            count: cython.int = self.chain.count - self.chain.readable
            got: cython.Py_ssize_t = receive_parts(p.fd, self.chain.iov + self.chain.readable, count)
            if got > 0:
                queue_release(q, self.chain, cython.cast(uint32_t, got))
                any_ = True
                continue
            queue_unget(q, self.chain)
            if count == 0:
                queue_break(q, "a receive buffer that can't be written")
                return any_
            if got < 0 and errno == EINTR:
                continue
            p.readable = False
            if p.gone or (got < 0 and errno != EAGAIN):
                self.hang_up(p)
                self.pump_control(lane)
        q.wanted = False
        return any_

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def pump_control(self, lane: Lane) -> cython.bint:
        """Tell the driver what it is to know of its ports. False: there was nothing, or no buffer for it."""
        q: cython.pointer(VirtQueue) = lane.queues[CONTROL_IN]
        any_: cython.bint = False
        size: uint16_t[2]
        message: Control
        i: cython.int
        for i in range(self.count):
            p: cython.pointer(Port) = cython.address(self.ports[i])
            while p.tell & TELL_ADD or (p.ready and p.tell):
                if not self.multiport():
                    p.tell = 0
                    break
                if queue_get(q, self.chain) <= 0:
                    q.wanted = True
                    return any_
                any_ = True
                message.id = i
                message.value = 1
                length: uint64_t = cython.sizeof(Control)
                if p.tell & TELL_ADD:
                    message.event = DEVICE_ADD
                    p.tell &= ~TELL_ADD
                elif p.tell & TELL_CONSOLE:
                    message.event = CONSOLE_PORT
                    p.tell &= ~TELL_CONSOLE
                elif p.tell & TELL_NAME:
                    message.event = PORT_NAME
                    p.tell &= ~TELL_NAME
                    length += chain_write(self.chain, length, p.name, p.name_length)
                elif p.tell & TELL_OPEN:
                    message.event = PORT_OPEN
                    message.value = 1 if p.fd >= 0 else 0
                    p.tell &= ~TELL_OPEN
                else:
                    message.event = RESIZE
                    p.tell &= ~TELL_SIZE
                    size[0], size[1] = self.columns, self.rows  # older Linux takes them the other way round
                    length += chain_write(self.chain, length, size, 4)
                chain_write(self.chain, 0, cython.address(message), cython.sizeof(Control))
                queue_release(q, self.chain, cython.cast(uint32_t, min(length, self.chain.write_bytes)))
        q.wanted = False
        return any_

    # From the guest.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take(self, q: cython.pointer(VirtQueue), p: cython.pointer(Port)) -> cython.void:
        """What the guest sends by a port; NULL: by the control queue."""
        message: Control
        _turn: cython.int
        for _turn in range(TURN):
            if queue_get(q, self.chain) <= 0:
                return
            if p == cython.NULL:
                if self.chain.read_bytes >= cython.sizeof(Control):
                    chain_read(self.chain, 0, cython.address(message), cython.sizeof(Control))
                    self.control(cython.address(message))
                queue_release(q, self.chain, 0)
                continue
            i: uint16_t
            at: uint64_t = 0
            for i in range(self.chain.readable):
                size: uint64_t = self.chain.iov[i].iov_len
                while p.fd >= 0 and p.sent < at + size:
                    skip: uint64_t = p.sent - at
                    start: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), self.chain.iov[i].iov_base)
                    done: cython.Py_ssize_t = send_bytes(p.fd, start + skip, size - skip)
                    if done < 0 and errno == EINTR:
                        continue
                    if done < 0 and errno == EAGAIN:
                        queue_unget(q, self.chain)
                        q.wanted = False  # until the program has read some
                        return
                    if done <= 0:
                        self.hang_up(p)
                        break
                    p.sent += done
                at += size
            p.sent = 0
            queue_release(q, self.chain, 0)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def control(self, message: cython.pointer(cython.const[Control])) -> cython.void:
        i: cython.int
        if message.event == DEVICE_READY and message.value == 1:
            for i in range(self.count):
                self.ports[i].tell = TELL_ADD
                self.ports[i].ready = self.ports[i].open = False
            return
        if message.id >= cython.cast(uint32_t, self.count):
            return
        p: cython.pointer(Port) = cython.address(self.ports[message.id])
        if message.event == PORT_READY and message.value == 1:
            p.ready = True
            p.tell |= TELL_NAME | TELL_OPEN | (TELL_CONSOLE | TELL_SIZE if p.is_console else 0)
        elif message.event == PORT_OPEN:
            p.open = message.value != 0
            if p.gone and p.fd >= 0 and not p.open:
                self.hang_up(p)
