"""Who speaks to us and need not mean well: vhost-user's two sides, VMs at a switch, a guest's QEMU agent."""

from __future__ import annotations

import contextlib
import os
import socket
import struct
import tempfile
from collections.abc import Sequence
from typing import Any

from kvmkit.errors import BadInput
from kvmkit.guest.qga import GuestAgentError, QemuGuestAgent
from kvmkit.vhost_user.link import Link, Region
from kvmkit.vhost_user.messages import HEADER, Channel, PeerGone, PeerWrong, Protocol, Request, close_all
from kvmkit.virtio.vhost_user import kinds

from .formats import one_line
from .reader import Reader

QUICK = 0.005
"""Seconds: what has not come by then was never sent, as both ends are here."""
FEATURES = 1 << 30 | 1 << 32 | 1 << 28 | 1 << 12 | 1 << 9


class Talker(Channel):
    """Our end of a backend's connection. What we send is answered at once, by what the fuzzer says."""

    def __init__(self, program: Reader) -> None:
        ours, self.other = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
        super().__init__(ours, QUICK)
        self.program = program
        self.given: list[int] = []

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        if request == Request.SET_BACKEND_REQ_FD:
            self.given += [os.dup(fd) for fd in fds]
        program, value = self.program, 0
        how = program.below(16)
        if request == Request.GET_FEATURES:
            value = FEATURES if how < 12 else program.value()
        elif request in (Request.GET_PROTOCOL_FEATURES, Request.GET_QUEUE_NUM):
            value = program.number(3) if how < 12 else program.value()
        elif not flags & 8 and request not in (Request.GET_CONFIG, Request.GET_VRING_BASE):
            return  # nothing is answered to this
        body = struct.pack("<Q", value)
        if request == Request.GET_CONFIG:
            body = payload[:12] + program.bytes(len(payload) - 12)
        kind, said, size = int(request), 1 | 4, len(body)
        if how == 12:
            kind, said = program.number(1), program.number(1)
        elif how == 13:
            body = body[: program.below(9)] if program.flag() else body + program.bytes(program.below(9))
            size = len(body) if program.flag() else program.value() & 0xFFFFFFFF
        elif how == 14:
            body = program.bytes(program.below(20))
        data = HEADER.pack(kind, said, size) + body
        if how == 15:
            data = data[: program.below(len(data) + 1)]
        beside = [os.open("/dev/null", os.O_RDONLY) for _ in range(program.below(12))] if how == 14 else []
        with contextlib.suppress(OSError):
            socket.send_fds(self.other, [data], beside)
        close_all(beside)
        if how == 15:
            self.other.shutdown(socket.SHUT_WR)

    def close(self) -> None:
        super().close()
        self.other.close()
        close_all(self.given)
        self.given = []


class Peer(Link):
    """A Link whose backend is a Talker."""

    def __init__(self, program: Reader) -> None:
        self.channel = Talker(program)
        self.backend: Channel | None = None
        self.protocol = Protocol(0)
        try:
            self._negotiate()
        except BaseException:
            self.close()
            raise


def backend(data: bytes) -> None:
    """Answers and messages of a backend that serves a device of ours."""
    opened = len(os.listdir("/proc/self/fd"))
    _talk(Reader(data))
    assert len(os.listdir("/proc/self/fd")) == opened, "descriptors were left open"


def _talk(program: Reader) -> None:
    try:
        link = Peer(program)
    except (PeerGone, PeerWrong) as error:
        one_line(error)
        return
    try:
        assert 0 <= link.queues <= 64
        kind = program.choose((kinds.blk(2), kinds.fs("tag"), kinds.net(), kinds.scsi(), kinds.generic(4, 1, 24)))
        assert len(kind.config(link, kind.queues)) <= 256
        link.set_config(program.below(60), program.bytes(4))
        link.begin(program.value(), [Region(0, 4096, 4096, 0, 0)] * program.below(3))
        link.start_queue(0, 256, 0, 4096, 8192, 0, 0)
        channel = link.backend
        if channel is not None and isinstance(link.channel, Talker) and link.channel.given:
            channel.timeout = QUICK
            for _ in range(program.below(4)):
                head = HEADER.pack(program.choose((2, 2, program.number(1))), program.choose((1, 9, 5)), 0)
                os.write(link.channel.given[0], head if program.flag() else program.bytes(program.below(30)))
                link.backend_says()
        link.stop_queue(0)
        link.reset()
        link.gone()
    except (PeerGone, PeerWrong) as error:
        one_line(error)
    finally:
        link.close()


_servers: list[tuple[Any, tempfile.TemporaryDirectory[str]]] = []


def frontend(data: bytes) -> None:
    """Messages of a VMM that a device of ours is served to."""
    from kvmkit.virtio.rng import Rng
    from kvmkit.virtio.vhost_user.server import Server

    if not _servers:
        directory = tempfile.TemporaryDirectory(prefix="fuzz-")
        said: list[str] = []
        _servers.append(
            (Server(f"{directory.name}/s", lambda memory, log: Rng(memory, log=log), said.append), directory)
        )
    server = _servers[0][0]
    program = Reader(data)
    opened = len(os.listdir("/proc/self/fd"))
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.setblocking(False)
    channel = Channel(ours, QUICK)
    ram = os.memfd_create("fuzz")
    os.ftruncate(ram, 0x10000)
    bells = [os.eventfd(0, os.EFD_NONBLOCK) for _ in range(2)]
    try:
        for _ in range(40):
            if not program.more:
                break
            request, payload, fds = message(program, ram, bells)
            given = [os.dup(fd) for fd in fds]
            try:
                server._take(channel, request, program.choose((1, 9)), payload, given)
            finally:
                close_all(given)
            if program.below(4) == 0:
                os.eventfd_write(bells[0], 1)
            with contextlib.suppress(BlockingIOError):
                theirs.recv(1 << 16)
    except (PeerGone, PeerWrong, BadInput, struct.error, OSError) as error:  # as the server itself does
        one_line(error)
    finally:
        channel.close()
        server._reset()
        server._forget()
        theirs.close()
        close_all([ram, *bells])
    assert len(os.listdir("/proc/self/fd")) == opened, "descriptors were left open"


def message(program: Reader, ram: int, bells: list[int]) -> tuple[int, bytes, list[int]]:
    """One that may be right: regions of one file, rings in them, doorbells that are eventfds."""
    queue = program.choose((0, 0, 0, 1, program.value() & 0xFFFFFFFF))
    what = program.below(14)
    state = struct.pack("<II", queue, program.choose((0, 1, 8, 16, program.value() & 0xFFFFFFFF)))
    if what == 0:
        features = program.choose((1 << 32, 1 << 30 | 1 << 32, 1 << 30 | 1 << 32 | 3 << 28, program.value()))
        return Request.SET_FEATURES, struct.pack("<Q", features), []
    if what == 1:
        return Request.SET_PROTOCOL_FEATURES, struct.pack("<Q", program.value()), []
    if what == 2:
        count = 1 + program.below(3)
        regions = [(0x10000 * i, program.choose((0x10000, 0x8000, program.value())), 0x7F0000000000 + 0x10000 * i,
                    program.choose((0, 0, 4096, program.value()))) for i in range(count)]  # fmt: skip
        body = b"".join(struct.pack("<QQQQ", *region) for region in regions)
        return Request.SET_MEM_TABLE, struct.pack("<II", count, 0) + body, [ram] * (count - (program.below(8) == 0))
    if what == 3:
        return Request.SET_VRING_NUM, state, []
    if what == 4:
        return Request.SET_VRING_BASE, state, []
    if what == 5:
        rings = [0x7F0000000000 + program.choose((0, 0x1000, 0x2000, program.value())) & (1 << 64) - 1
                 for _ in range(3)]  # fmt: skip
        return Request.SET_VRING_ADDR, struct.pack("<IIQQQQ", queue, 0, *rings, 0), []
    if what in (6, 7):
        kind = Request.SET_VRING_KICK if what == 6 else Request.SET_VRING_CALL
        index = queue & 0xFFFFFFFF | (0x100 if program.below(8) == 0 else 0)
        return kind, struct.pack("<Q", index), [bells[what - 6]] * program.choose((1, 1, 1, 0, 2))
    if what == 8:
        return Request.SET_VRING_ENABLE, state, []
    if what == 9:
        return Request.GET_VRING_BASE, state, []
    if what == 10:  # what stands in the memory
        os.pwrite(ram, program.bytes(program.below(64)), program.choose((0, 0x1000, 0x2000)) + program.below(64))
        return Request.GET_QUEUE_NUM, b"", []
    if what == 11:
        body = struct.pack("<III", program.below(300), program.below(300), 0) + program.bytes(program.below(9))
        return program.choose((Request.GET_CONFIG, Request.SET_CONFIG)), body, []
    if what == 12:
        simple = Request.RESET_DEVICE, Request.SET_OWNER, Request.GET_FEATURES, Request.SET_BACKEND_REQ_FD
        return program.choose(simple), b"", [ram, bells[0]][: program.below(3)]
    return program.number(1), program.bytes(program.below(40)), [ram] * program.below(3)


def display(data: bytes) -> None:
    """What a GPU's backend shows."""
    from kvmkit.vhost_user.display import Display

    program, screen = Reader(data), Display(64, 48)
    ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
    theirs.setblocking(False)
    null = os.open("/dev/null", os.O_RDONLY)
    opened = len(os.listdir("/proc/self/fd"))
    try:
        with contextlib.suppress(BlockingIOError):
            while program.more:
                kind = program.choose((1, 3, 7, 7, 8, 8, 9, 10, program.number(1)))
                numbers = [program.choose((0, 1, 8, 64, program.number(2))) for _ in range(program.below(6))]
                if kind in (7, 9) and len(numbers) > 2:
                    numbers[1:3] = [each & 0xFF if each < 0x8000 else 0xFFFFFFFF for each in numbers[1:3]]
                body = struct.pack(f"<{len(numbers)}I", *numbers) + program.bytes(program.below(64)) * program.below(9)
                size = len(body) if program.below(16) else program.value() & 0xFFFFFFFF
                socket.send_fds(theirs, [struct.pack("<III", kind, 0, size) + body], [null] * program.below(4))
        theirs.shutdown(socket.SHUT_WR)
        screen._serve(ours)
        width, height, pixels = screen.picture()
        assert len(pixels) == 4 * width * height
        assert len(os.listdir("/proc/self/fd")) == opened - 1, "descriptors were left open"  # its socket is closed
    finally:
        theirs.close()
        ours.close()
        os.close(null)


_switches: list[tuple[Any, str, tempfile.TemporaryDirectory[str]]] = []


def switch(data: bytes) -> None:
    """What VMs send to the switch between them: frames, parts of frames, and what is none."""
    from kvmkit.net.switch import Switch

    if not _switches:
        directory = tempfile.TemporaryDirectory(prefix="fuzz-")
        path = f"{directory.name}/s"
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        listener.bind(path)
        listener.listen(8)
        _switches.append((Switch(listener), path, directory))
    center, path, _ = _switches[0]
    program = Reader(data)
    ports: list[socket.socket] = []

    def turn() -> None:
        for _ in range(64):
            if not center.run(0):
                return

    try:
        while program.more and len(ports) < 6:
            what = program.below(8)
            if what == 0 or not ports:
                ports.append(socket.socket(socket.AF_UNIX, socket.SOCK_STREAM))
                ports[-1].setblocking(False)
                ports[-1].connect(path)
            elif what == 1:
                ports.pop(program.below(len(ports))).close()
            else:
                one = program.choose(ports)
                with contextlib.suppress(OSError):
                    if what == 2:
                        one.recv(1 << 16)
                    elif what == 3:
                        one.send(program.bytes(program.below(40)))
                    else:
                        places = [bytes(6), b"\xff" * 6, b"\2" + bytes(4) + bytes([program.below(4)])]
                        frame = program.choose(places) + program.choose(places) + program.bytes(program.below(80))
                        frame *= program.choose((1, 1, 1, 200))
                        size = len(frame) if program.below(16) else program.value() & 0xFFFFFFFF
                        one.send(struct.pack(">I", size) + frame)
            turn()
    finally:
        for one in ports:
            one.close()
        turn()
    assert center.counters() == []


class Guest(QemuGuestAgent):
    """An agent whose answers are there before it is asked."""

    def __init__(self, ours: socket.socket) -> None:
        self._timeout = QUICK
        self._buffer = bytearray()
        self._socket = ours


def qga(data: bytes) -> None:
    """What a guest says on the QEMU agent's port."""
    program = Reader(data)
    ours, theirs = socket.socketpair()
    agent = Guest(ours)
    try:
        for _ in range(1 + program.below(4)):
            theirs.sendall(b"".join(line(program) for _ in range(1 + program.below(2))))
            what = program.below(4)
            if what == 0:
                text = agent.version()
                assert text.isprintable(), text
            elif what == 1:
                found = agent.execute(["x"], input=b"y", timeout=QUICK)
                assert 0 <= found.status <= 255
            elif what == 2:
                agent.set_time(1)
            else:
                agent.ping()
    except GuestAgentError as error:
        one_line(error)
    finally:
        agent.close()
        theirs.close()


def line(program: Reader) -> bytes:
    """A line that may be an answer."""
    if program.below(4) == 0:
        return program.bytes(program.below(40)) + b"\n"
    import json

    return json.dumps({program.choose(("return", "return", "error", "x")): thing(program, 0)}).encode() + b"\n"


def thing(program: Reader, depth: int) -> Any:
    names = ("pid", "exited", "exitcode", "signal", "out-data", "err-data", "desc", "class", "version")
    what = program.below(9)
    if what < 4 and depth < 3:
        return {program.choose(names): thing(program, depth + 1) for _ in range(program.below(5))}
    if what == 4:
        return program.value() * program.choose((1, -1, 1 << 200))
    if what == 5:
        return program.choose((True, False, None, 1.5, float("inf"), float("nan"), "aGVsbG8=", "\ud800", "é"))
    if what == 6 and depth < 3:
        return [thing(program, depth + 1) for _ in range(program.below(4))]
    return program.bytes(program.below(12)).decode("latin-1")


def close() -> None:
    while _switches:
        center, _, directory = _switches.pop()
        center.close()
        directory.cleanup()
    while _servers:
        server, directory = _servers.pop()
        server.close()
        directory.cleanup()
