"""The control socket's protocol, version 1: one JSON object a line, both ways, on a UNIX stream socket.

    client    {"kvmkit": 1, "verb": "exec", "argv": ["true"], ...}     descriptors go with the line's first byte
    server    {"ok": true, ...}  or  {"error": "one line", "status": 2}
    server    {"exit": 0}              more lines, for verbs that take time: exec, stop, wait, stats
    client    {"signal": 2}            more lines, for exec
    console   after {"ok": true}, the connection is the console's bytes, both ways

The socket is its owner's alone (mode 0600, and who connects is looked at, too); what comes is checked all the same.
"""

from __future__ import annotations

import os
import socket
from typing import Any

import msgspec

from kvmkit.errors import BadInput, HostError, KvmkitError

VERSION = 1
LONGEST_LINE = 256 << 10
"""Bytes of one message: all that a guest command can be given fits."""
MOST_DESCRIPTORS = 3
REPLY_SECONDS = 30.0


class Refused(KvmkitError):
    """The VM's process said no, in one line."""

    def __init__(self, message: str, status: int = 1) -> None:
        super().__init__(message)
        self.exit_status = status


class NotRunning(KvmkitError):
    """Nobody listens."""


def line(message: Any) -> bytes:
    return msgspec.json.encode(message) + b"\n"


def address(directory: int, name: str) -> str:
    """A path for bind or connect. sun_path has 108 bytes, fewer than a home's path may have: so by its descriptor."""
    return f"/proc/self/fd/{directory}/{name}"


class Connection:
    """A client's end: send a request, read the answers."""

    def __init__(self, directory: int, name: str, timeout: float | None = REPLY_SECONDS) -> None:
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        self._socket.settimeout(timeout)
        self._buffer = bytearray()
        try:
            self._socket.connect(address(directory, name))
        except (FileNotFoundError, ConnectionRefusedError):
            self._socket.close()
            raise NotRunning("nobody listens on its control socket") from None
        except OSError as error:
            self._socket.close()
            raise HostError(f"can't connect to its control socket: {error.strerror or error}") from None

    def fileno(self) -> int:
        return self._socket.fileno()

    @property
    def socket(self) -> socket.socket:
        return self._socket

    def send(self, message: Any, descriptors: list[int] | None = None) -> None:
        """Raises NotRunning when the VM's process has gone."""
        data = line(message)
        if len(data) > LONGEST_LINE:
            raise BadInput(f"that is {len(data)} bytes of arguments; a VM takes {LONGEST_LINE} at once")
        try:
            sent = socket.send_fds(self._socket, [data], descriptors) if descriptors else 0
            if sent < len(data):  # even nothing can't be sent to one who has answered and closed already
                self._socket.sendall(data[sent:])
        except TimeoutError:
            raise Refused("its process does not answer (see `kvmkit kill`)") from None
        except OSError as error:
            self.receive(1.0)  # raises what it was told before it was closed
            raise NotRunning(f"its process has closed the connection ({error.strerror})") from None

    def receive(self, timeout: float | None = None) -> dict[str, Any] | None:
        """The next line, waiting `timeout` seconds (None: without end). None: the connection has ended.

        Raises Refused for an `error`.
        """
        while b"\n" not in self._buffer:
            self._socket.settimeout(timeout)
            try:
                data = self._socket.recv(1 << 16)
            except TimeoutError:
                raise Refused("its process does not answer (see `kvmkit kill`)") from None
            except ConnectionError:
                return None
            if not data:
                return None
            self._buffer += data
        text, _, rest = bytes(self._buffer).partition(b"\n")
        self._buffer = bytearray(rest)
        answer: dict[str, Any] = msgspec.json.decode(text)
        if "error" in answer:
            raise Refused(str(answer["error"]), int(answer.get("status", 1)))
        return answer

    def rest(self) -> bytes:
        """What came after the last line, for a connection that is to carry plain bytes now."""
        data = bytes(self._buffer)
        self._buffer.clear()
        return data

    def close(self) -> None:
        self._socket.close()


def listen(directory: int, name: str) -> socket.socket:
    """A listening socket at `name`, for this user alone."""
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        before = os.umask(0o177)
        try:
            server.bind(address(directory, name))
        finally:
            os.umask(before)
        server.listen(128)
    except OSError as error:
        server.close()
        raise HostError(f"can't make a control socket: {error.strerror or error}") from None
    return server


def peer_uid(connection: socket.socket) -> int:
    """Whose process is at the other end."""
    return _credentials(connection)[1]


def peer_pid(connection: socket.socket) -> int:
    """Which process was at the other end when it connected."""
    return _credentials(connection)[0]


def _credentials(connection: socket.socket) -> tuple[int, int, int]:
    import struct

    pid, uid, gid = struct.unpack("iII", connection.getsockopt(socket.SOL_SOCKET, socket.SO_PEERCRED, 12))
    return pid, uid, gid
