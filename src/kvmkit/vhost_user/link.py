"""The frontend's side of a connection: what a backend offers, and having it serve queues.

A Link is made when the backend is there and closed when it is gone; the device makes another one then.
"""

from __future__ import annotations

import errno
import os
import select
import socket
from dataclasses import dataclass

from kvmkit.errors import HostError

from .messages import (
    CONFIG,
    MOST_CONFIG,
    MOST_REGIONS,
    NEED_REPLY,
    NO_DESCRIPTOR,
    PROTOCOL_FEATURES,
    REGION,
    REPLY,
    U64,
    VRING_ADDR,
    VRING_STATE,
    BackendRequest,
    Channel,
    PeerWrong,
    Protocol,
    Request,
    close_all,
)

USED = (
    Protocol.MQ | Protocol.REPLY_ACK | Protocol.BACKEND_REQ | Protocol.CONFIG | Protocol.RESET_DEVICE | Protocol.STATUS
)
"""Protocol features that are used where they are offered. Not INFLIGHT_SHMFD: what is in flight is known here."""
ANSWER_SECONDS = 5.0
MOST_QUEUES = 64


@dataclass(frozen=True)
class Region:
    """Memory the backend may use: guest physical address, bytes, our address, a file and the offset in it."""

    guest: int
    size: int
    host: int
    fd: int
    offset: int


class Link:
    """A negotiated connection to the backend at `path`, a UNIX socket. Every method raises PeerGone and PeerWrong.

    One thread at a time. `seconds`: how long it may take until it answers first; a disk's key is slow by design.
    """

    def __init__(self, path: str, seconds: float | None = None) -> None:
        sock = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        self.channel = Channel(sock, seconds or ANSWER_SECONDS)
        self.backend: Channel | None = None
        self.protocol = Protocol(0)
        try:
            sock.settimeout(ANSWER_SECONDS)
            sock.connect(path)
            sock.setblocking(False)
            self._negotiate()
            self.channel.timeout = ANSWER_SECONDS
        except BaseException:
            self.close()
            raise

    def _negotiate(self) -> None:
        self._send(Request.SET_OWNER)
        self.features = self._get(Request.GET_FEATURES)
        self.queues = 0
        """How many queues it serves at most; 0: it does not say."""
        if not self.features & PROTOCOL_FEATURES:
            return
        wanted = Protocol(self._get(Request.GET_PROTOCOL_FEATURES)) & USED
        if not wanted & Protocol.BACKEND_REQ:
            wanted &= ~Protocol.BACKEND_REQ
        self._send(Request.SET_PROTOCOL_FEATURES, U64.pack(wanted))
        self.protocol = wanted
        if wanted & Protocol.MQ:
            self.queues = min(self._get(Request.GET_QUEUE_NUM), MOST_QUEUES)
        if wanted & Protocol.BACKEND_REQ and wanted & Protocol.CONFIG:
            ours, theirs = socket.socketpair(socket.AF_UNIX, socket.SOCK_STREAM)
            self.backend = Channel(ours, ANSWER_SECONDS)
            with theirs:
                self._order(Request.SET_BACKEND_REQ_FD, fds=[theirs.fileno()])

    def close(self) -> None:
        self.channel.close()
        if self.backend is not None:
            self.backend.close()

    # Messages.

    def _send(self, request: int, payload: bytes = b"", fds: list[int] | None = None, flags: int = 0) -> None:
        self.channel.send(request, payload, fds or (), flags)

    def _order(self, request: int, payload: bytes = b"", fds: list[int] | None = None) -> None:
        """Send, and hear whether it worked where the backend says so."""
        if not self.protocol & Protocol.REPLY_ACK:
            self._send(request, payload, fds)
            return
        self._send(request, payload, fds, NEED_REPLY)
        status = self._answer(request, U64.size)
        if any(status):
            raise PeerWrong(f"it refuses {Request(request).name} ({U64.unpack(status)[0]})")

    def _answer(self, request: int, size: int) -> bytes:
        got, flags, payload, fds = self.channel.receive()
        close_all(fds)
        if got != request or not flags & REPLY:
            raise PeerWrong(f"it answers {Request(request).name} by message {got}")
        if len(payload) != size:
            raise PeerWrong(f"it answers {Request(request).name} in {len(payload)} bytes, not in {size}")
        return payload

    def _get(self, request: int) -> int:
        self._send(request)
        return int(U64.unpack(self._answer(request, U64.size))[0])

    # The device.

    def get_config(self, size: int) -> bytes:
        """The first `size` bytes of the configuration space."""
        if not self.protocol & Protocol.CONFIG:
            raise PeerWrong("it does not tell the device's configuration (no VHOST_USER_PROTOCOL_F_CONFIG)")
        assert 0 < size <= MOST_CONFIG
        self._send(Request.GET_CONFIG, CONFIG.pack(0, size, 0) + bytes(size))
        payload = self._answer(Request.GET_CONFIG, CONFIG.size + size)
        return payload[CONFIG.size :]

    def set_config(self, offset: int, data: bytes) -> None:
        if self.protocol & Protocol.CONFIG:
            self._order(Request.SET_CONFIG, CONFIG.pack(offset, len(data), 0) + data)

    def begin(self, features: int, regions: list[Region]) -> None:
        """The driver's features, and the memory. Before any queue is started."""
        assert len(regions) <= MOST_REGIONS
        with_protocol = PROTOCOL_FEATURES if self.features & PROTOCOL_FEATURES else 0
        self._order(Request.SET_FEATURES, U64.pack(features | with_protocol))
        table = b"".join(REGION.pack(one.guest, one.size, one.host, one.offset) for one in regions)
        self._order(Request.SET_MEM_TABLE, VRING_STATE.pack(len(regions), 0) + table, [region.fd for region in regions])
        self.status(0x0F)

    def status(self, value: int) -> None:
        if self.protocol & Protocol.STATUS:
            self._order(Request.SET_STATUS, U64.pack(value))

    def start_queue(
        self, index: int, size: int, descriptors: int, available: int, used: int, kick: int, call: int
    ) -> None:
        """Serve a queue of `size` from its first entry on. Addresses are ours, `kick` and `call` eventfds."""
        self._order(Request.SET_VRING_NUM, VRING_STATE.pack(index, size))
        self._order(Request.SET_VRING_BASE, VRING_STATE.pack(index, 0))
        self._order(Request.SET_VRING_ADDR, VRING_ADDR.pack(index, 0, descriptors, used, available, 0))
        self._order(Request.SET_VRING_ERR, U64.pack(index | NO_DESCRIPTOR))
        self._order(Request.SET_VRING_CALL, U64.pack(index), [call])
        self._order(Request.SET_VRING_KICK, U64.pack(index), [kick])
        if self.features & PROTOCOL_FEATURES:
            self._order(Request.SET_VRING_ENABLE, VRING_STATE.pack(index, 1))

    def stop_queue(self, index: int) -> None:
        """Come back when the backend uses nothing of this queue any more."""
        self._send(Request.GET_VRING_BASE, VRING_STATE.pack(index, 0))
        self._answer(Request.GET_VRING_BASE, VRING_STATE.size)

    def reset(self) -> None:
        """The driver has reset the device; all queues are stopped."""
        if self.protocol & Protocol.STATUS:
            self.status(0)
        elif self.protocol & Protocol.RESET_DEVICE:
            self._order(Request.RESET_DEVICE)

    def set_display(self, end: socket.socket) -> None:
        """Where a graphics card shows its pictures; closed here."""
        with end:
            self._send(Request.GPU_SET_SOCKET, fds=[end.fileno()])

    # Watching.

    def gone(self) -> bool:
        """The backend has hung up."""
        poll = select.poll()
        poll.register(self.channel.sock, select.POLLRDHUP)
        return bool(poll.poll(0))

    def backend_says(self) -> bool:
        """Read what the backend sent by itself. True: its configuration has changed."""
        assert self.backend is not None
        request, flags, _payload, fds = self.backend.receive()
        close_all(fds)
        known = request == BackendRequest.CONFIG_CHANGE
        if flags & NEED_REPLY:
            self.backend.send(request, U64.pack(0 if known else 1), flags=REPLY)
        return known


def refusal(path: str, error: OSError) -> HostError:
    """Why no backend can be reached, and what to do."""
    if error.errno in (errno.ENOENT, errno.ECONNREFUSED):
        return HostError(f"no process serves {path}: start the vhost-user backend first, and have it listen there")
    return HostError(f"{path}: {error.strerror or os.strerror(error.errno or 0)}")
