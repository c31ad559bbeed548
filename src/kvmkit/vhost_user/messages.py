"""Messages of vhost-user on their UNIX socket. Source: QEMU's docs/interop/vhost-user.rst.

A message is a request number, flags and a payload's size, 32 bits each, then the payload, with descriptors beside it.
"""

from __future__ import annotations

import array
import contextlib
import os
import select
import socket
import struct
import time
from collections.abc import Sequence
from enum import IntEnum, IntFlag

from kvmkit.errors import KvmkitError


class Request(IntEnum):
    """From the frontend (the VMM) to the backend (who serves the device)."""

    GET_FEATURES = 1
    SET_FEATURES = 2
    SET_OWNER = 3
    RESET_OWNER = 4
    SET_MEM_TABLE = 5
    SET_LOG_BASE = 6
    SET_LOG_FD = 7
    SET_VRING_NUM = 8
    SET_VRING_ADDR = 9
    SET_VRING_BASE = 10
    GET_VRING_BASE = 11
    SET_VRING_KICK = 12
    SET_VRING_CALL = 13
    SET_VRING_ERR = 14
    GET_PROTOCOL_FEATURES = 15
    SET_PROTOCOL_FEATURES = 16
    GET_QUEUE_NUM = 17
    SET_VRING_ENABLE = 18
    SET_BACKEND_REQ_FD = 21
    GET_CONFIG = 24
    SET_CONFIG = 25
    GET_INFLIGHT_FD = 31
    SET_INFLIGHT_FD = 32
    GPU_SET_SOCKET = 33
    RESET_DEVICE = 34
    SET_STATUS = 39
    GET_STATUS = 40


class BackendRequest(IntEnum):
    """The other way, on a socket of their own."""

    CONFIG_CHANGE = 2


class Protocol(IntFlag):
    """Protocol features."""

    MQ = 1 << 0
    REPLY_ACK = 1 << 3
    BACKEND_REQ = 1 << 5
    CONFIG = 1 << 9
    INFLIGHT_SHMFD = 1 << 12
    RESET_DEVICE = 1 << 13
    STATUS = 1 << 16


PROTOCOL_FEATURES = 1 << 30
"""The feature bit that says that there are protocol features."""
VERSION, REPLY, NEED_REPLY = 1, 4, 8
NO_DESCRIPTOR = 1 << 8
MOST_REGIONS = 8
MOST_CONFIG = 256
MOST_PAYLOAD = 4096
"""A peer must not have us keep more than any message has."""
HEADER = struct.Struct("<III")
U64 = struct.Struct("<Q")
VRING_STATE = struct.Struct("<II")
VRING_ADDR = struct.Struct("<IIQQQQ")
CONFIG = struct.Struct("<III")
REGION = struct.Struct("<QQQQ")


class PeerGone(KvmkitError):
    """The process at the other end closed the socket, died, or does not answer."""


class PeerWrong(KvmkitError):
    """The process at the other end sent what the protocol does not allow."""


class Channel:
    """One end of a vhost-user socket, which it owns. `timeout`: seconds that a whole message may take."""

    def __init__(self, sock: socket.socket, timeout: float | None = None) -> None:
        self.sock = sock
        self.timeout = timeout
        sock.setblocking(False)

    def close(self) -> None:
        self.sock.close()

    def _wait(self, events: int, end: float | None) -> None:
        poll = select.poll()
        poll.register(self.sock, events)
        left = None if end is None else max(end - time.monotonic(), 0) * 1000
        if not poll.poll(left):
            raise PeerGone(f"no answer within {self.timeout:g} s")

    def _end(self) -> float | None:
        return None if self.timeout is None else time.monotonic() + self.timeout

    def send(self, request: int, payload: bytes = b"", fds: Sequence[int] = (), flags: int = 0) -> None:
        """Raises PeerGone."""
        data = HEADER.pack(request, VERSION | flags, len(payload)) + payload
        beside = [(socket.SOL_SOCKET, socket.SCM_RIGHTS, array.array("i", fds))] if fds else []
        end = self._end()
        sent = 0
        while sent < len(data):
            try:
                sent += self.sock.sendmsg([data[sent:]], beside, socket.MSG_NOSIGNAL)
                beside = []
            except BlockingIOError:
                self._wait(select.POLLOUT, end)
            except OSError as error:
                raise PeerGone(error.strerror) from None

    def receive(self) -> tuple[int, int, bytes, list[int]]:
        """(request, flags, payload, descriptors) of the next message. Raises PeerGone and PeerWrong."""
        end = self._end()
        fds: list[int] = []
        try:
            request, flags, size = HEADER.unpack(self._exactly(HEADER.size, fds, end))
            if flags & 3 != VERSION:
                raise PeerWrong(f"a message of version {flags & 3}, not {VERSION}")
            if size > MOST_PAYLOAD:
                raise PeerWrong(f"message {request} of {size} bytes")
            return request, flags, self._exactly(size, fds, end), fds
        except BaseException:
            close_all(fds)
            raise

    def _exactly(self, size: int, fds: list[int], end: float | None) -> bytes:
        data = b""
        while len(data) < size:
            try:
                room = socket.CMSG_SPACE(4 * MOST_REGIONS)
                part, beside, flags, _ = self.sock.recvmsg(size - len(data), room, socket.MSG_CMSG_CLOEXEC)
            except BlockingIOError:
                self._wait(select.POLLIN, end)
                continue
            except OSError as error:
                raise PeerGone(error.strerror) from None
            for level, kind, what in beside:
                if level == socket.SOL_SOCKET and kind == socket.SCM_RIGHTS:
                    got = array.array("i")
                    got.frombytes(what[: len(what) - len(what) % 4])
                    fds += got
            if len(fds) > MOST_REGIONS or flags & socket.MSG_CTRUNC:
                raise PeerWrong("more descriptors than a message has")
            if not part:
                raise PeerGone("it closed the connection" + (" within a message" if data else ""))
            data += part
        return data


def close_all(fds: Sequence[int]) -> None:
    for fd in fds:
        with contextlib.suppress(OSError):
            os.close(fd)
