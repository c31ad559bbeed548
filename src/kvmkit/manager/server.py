"""The control socket's server: connections, their bounds, and what becomes of a message. It shares the agent's loop.

Whatever is sent to it, the VM goes on: a connection that says what it should not gets one line and is closed.
"""

from __future__ import annotations

import os
import select
import socket
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import msgspec

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.manager import files, wire
from kvmkit.manager.messages import More, Request

MOST_PEERS = 200
REQUEST_SECONDS = 10.0
"""How long a connection may take to say what it wants."""
MOST_PENDING = 1 << 20
"""Bytes that a connection may leave unread."""
MOST_COMPLAINTS = 100
FAREWELL_SECONDS = 1.0


class Task(Protocol):
    """What a connection waits for after its request."""

    def more(self, message: More) -> None: ...
    def keys(self, data: bytes) -> None: ...
    def gone(self) -> None: ...
    def look(self, now: float) -> float | None:
        """Called after each turn; when to call it again at the latest."""

    def ended(self, ended: dict[str, Any]) -> None:
        """The VM has ended."""


class Peer:
    """One connection."""

    def __init__(self, connection: socket.socket) -> None:
        self.socket = connection
        self.buffer = bytearray()
        self.out = bytearray()
        self.descriptors: list[int] = []
        self.since = time.monotonic()
        self.task: Task | None = None
        self.requested = False
        self.raw = False
        """It carries plain bytes now."""
        self.closing = False
        """To be closed when what is in `out` is sent."""

    def say(self, message: Any) -> None:
        self.out += wire.line(message)

    def take_descriptors(self) -> list[int]:
        taken, self.descriptors = self.descriptors, []
        return taken


class Server:
    """`act` takes a connection's request; it returns the task that goes on, or None."""

    def __init__(self, listener: socket.socket, act: Callable[[Peer, Request], Task | None]) -> None:
        self._listener = listener
        self._act = act
        self._peers: dict[int, Peer] = {}
        self._watched: dict[int, Callable[[int], None]] = {}
        self._after: list[Callable[[float], float | None]] = []
        self._complaints = 0

    # For the rest of the VM's process.

    def watch(self, fd: int, ready: Callable[[int], None]) -> None:
        """Call `ready(events)` whenever `fd` can be read."""
        self._watched[fd] = ready

    def forget(self, fd: int) -> None:
        self._watched.pop(fd, None)

    def after_each_turn(self, look: Callable[[float], float | None]) -> None:
        """Call `look(now)` after each turn; it tells when to be called again at the latest."""
        self._after.append(look)

    def finish(self, ended: dict[str, Any]) -> None:
        """Tell those who wait that the VM has ended, and close."""
        for peer in self._peers.values():
            if peer.task is not None:
                self._guarded(peer, lambda task=peer.task: task.ended(ended))  # type: ignore[misc]  # a bound default
            peer.closing = True
        end = time.monotonic() + FAREWELL_SECONDS
        while pending := [peer for peer in self._peers.values() if peer.out]:
            poll = select.poll()
            for peer in pending:
                poll.register(peer.socket, select.POLLOUT)
            if time.monotonic() >= end or not poll.poll(100):
                break
            for peer in pending:
                self._flush(peer)
        self.close()

    def close(self) -> None:
        for peer in list(self._peers.values()):
            self._drop(peer)
        self._listener.close()

    # For the loop.

    def interest(self) -> Mapping[int, int]:
        wanted = dict.fromkeys(self._watched, select.POLLIN)
        if len(self._peers) < MOST_PEERS:
            wanted[self._listener.fileno()] = select.POLLIN
        for fd, peer in self._peers.items():
            wanted[fd] = select.POLLIN | (select.POLLOUT if peer.out else 0)
        return wanted

    def ready(self, fd: int, events: int) -> None:
        if fd in self._watched:
            self._watched[fd](events)
        elif (peer := self._peers.get(fd)) is not None:
            if events & ~select.POLLOUT:
                self._guarded(peer, lambda: self._receive(peer))
        elif fd == self._listener.fileno():
            self._accept()

    def after(self) -> float | None:
        now = time.monotonic()
        moments = [look(now) for look in self._after]
        for peer in list(self._peers.values()):
            task = peer.task
            if task is not None:
                self._guarded(peer, lambda task=task: moments.append(task.look(now)))  # type: ignore[misc]  # as above
            elif not peer.requested and not peer.closing:
                if now >= peer.since + REQUEST_SECONDS:
                    peer.closing = True
                moments.append(peer.since + REQUEST_SECONDS)
            if peer.out:
                self._flush(peer)
            if peer.closing and not peer.out:
                self._drop(peer)
        return min((moment for moment in moments if moment is not None), default=None)

    # Connections.

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return  # it has gone again, or this process has too many files open
        connection.setblocking(False)
        if wire.peer_uid(connection) not in (0, os.getuid()):
            connection.close()
            return
        self._peers[connection.fileno()] = Peer(connection)

    def _drop(self, peer: Peer) -> None:
        self._peers.pop(peer.socket.fileno(), None)
        task, peer.task = peer.task, None
        if task is not None:
            try:
                task.gone()
            except Exception as error:
                self._complain(error)
        for fd in peer.take_descriptors():
            os.close(fd)
        peer.socket.close()

    def _flush(self, peer: Peer) -> None:
        try:
            sent = peer.socket.send(peer.out, socket.MSG_NOSIGNAL)
            del peer.out[:sent]
        except BlockingIOError:
            if len(peer.out) > MOST_PENDING:
                self._drop(peer)
        except OSError:
            peer.out.clear()
            self._drop(peer)

    def _receive(self, peer: Peer) -> None:
        try:
            data, descriptors, _, _ = socket.recv_fds(
                peer.socket, 1 << 16, wire.MOST_DESCRIPTORS, socket.MSG_CMSG_CLOEXEC
            )
        except BlockingIOError:
            return
        except OSError:
            data, descriptors = b"", []
        peer.descriptors += descriptors
        if not data:
            peer.out.clear()
            self._drop(peer)
            return
        if peer.closing:
            return
        if peer.raw:
            if peer.task is not None:
                peer.task.keys(data)
            return
        peer.buffer += data
        while not peer.closing and not peer.raw and (at := peer.buffer.find(b"\n")) >= 0:
            line = bytes(peer.buffer[:at])
            del peer.buffer[: at + 1]
            if len(line) > wire.LONGEST_LINE:
                break
            self._message(peer, line)
        if peer.raw:
            if peer.buffer and peer.task is not None:
                peer.task.keys(bytes(peer.buffer))
            peer.buffer.clear()
        if len(peer.buffer) > wire.LONGEST_LINE or len(peer.descriptors) > wire.MOST_DESCRIPTORS:
            raise BadInput("that is no message of the control protocol: it is too long")

    def _message(self, peer: Peer, line: bytes) -> None:
        if not peer.requested:
            try:
                request = msgspec.json.decode(line, type=Request)
            except (msgspec.DecodeError, RecursionError) as error:
                raise BadInput(f"that is no request of the control protocol: {error}") from None
            if request.kvmkit != wire.VERSION:
                raise BadInput(f"this VM's process speaks version {wire.VERSION} of the control protocol: restart it")
            peer.requested = True
            peer.task = self._act(peer, request)
            if peer.task is None:
                peer.closing = True
        elif peer.task is not None:
            try:
                message = msgspec.json.decode(line, type=More)
            except (msgspec.DecodeError, RecursionError) as error:
                raise BadInput(f"that is no message of the control protocol: {error}") from None
            peer.task.more(message)

    def _guarded(self, peer: Peer, call: Callable[[], Any]) -> None:
        """A connection's mistake, or ours while we serve it, ends that connection only."""
        try:
            call()
        except KvmkitError as error:
            if not peer.raw:
                peer.say({"error": files.text(str(error)), "status": error.exit_status})
            peer.closing = True
        except Exception as error:
            self._complain(error)
            if not peer.raw:
                peer.say({"error": f"the VM's process could not do it: {type(error).__name__} (see its log)"})
            peer.closing = True

    def _complain(self, error: Exception) -> None:
        import traceback

        self._complaints += 1
        if self._complaints <= MOST_COMPLAINTS:
            sys.stderr.write("".join(traceback.format_exception(error)))
            sys.stderr.flush()
