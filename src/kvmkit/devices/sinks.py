"""Where a device's output goes. A sink never blocks: it takes what it can and says how much that was."""

from __future__ import annotations

import os
import select
import socket
import stat
import time
from collections.abc import Callable
from typing import Protocol

PIECE = 256
"""Bytes for a descriptor that can only be asked whether it takes something, not how much: a terminal has room then."""


class Sink(Protocol):
    def write(self, data: bytes, /) -> int:
        """Take bytes; how many, from 0 to all. What is not taken is offered again later."""

    def fileno(self) -> int:
        """The descriptor to wait on (POLLOUT) when it took less than all; -1: there is none, try again soon."""


class Discard:
    """Takes everything, keeps nothing."""

    def write(self, data: bytes) -> int:
        return len(data)

    def fileno(self) -> int:
        return -1


class SocketSink:
    """A stream socket, lossless: a reader that is slow stops the guest's sending. A reader that is gone does not."""

    def __init__(self, connection: socket.socket) -> None:
        connection.setblocking(False)
        self.connection = connection
        self.gone = False

    def write(self, data: bytes) -> int:
        if self.gone:
            return len(data)
        try:
            return self.connection.send(data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.gone = True
            return len(data)

    def fileno(self) -> int:
        return -1 if self.gone else self.connection.fileno()


class FileSink:
    """A file, pipe or terminal of somebody else's, which must stay as it is: it may be shared with a shell.

    O_NONBLOCK belongs to the open file, not to the descriptor, so a pipe or a terminal is opened once more. Where
    that is refused, it is asked before each small write. The descriptor given stays open and is not closed here.
    """

    def __init__(self, fd: int) -> None:
        self.fd = fd
        self.gone = False
        self._own = -1
        self._ask = False
        mode = os.fstat(fd).st_mode
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:
                self._own = os.open(f"/proc/self/fd/{fd}", os.O_WRONLY | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC)
            except OSError:
                self._ask = True
        elif stat.S_ISSOCK(mode):
            self._ask = True

    def write(self, data: bytes) -> int:
        if self.gone:
            return len(data)
        if self._ask:
            poll = select.poll()
            poll.register(self.fd, select.POLLOUT)
            if not poll.poll(0):
                return 0
            data = data[:PIECE]
        try:
            return os.write(self.fileno(), data)
        except (BlockingIOError, InterruptedError):
            return 0
        except OSError:
            self.gone = True
            return len(data)

    def fileno(self) -> int:
        return self._own if self._own >= 0 else self.fd

    def close(self) -> None:
        self.gone = True
        if self._own >= 0:
            os.close(self._own)
            self._own = -1


class ConsoleLog:
    """The end of what a console said, at most `keep` bytes of it, so that a guest can't fill the host's memory.

    With `forward`, every byte also goes to that sink, and the guest waits while that takes no more. `copy` is called
    with what was taken, and must take it all.
    """

    def __init__(
        self, keep: int = 64 * 1024, forward: Sink | None = None, copy: Callable[[bytes], None] | None = None
    ) -> None:
        self.keep = keep
        self.forward = forward
        self.copy = copy
        self.total = 0
        self.first_byte_ns: int | None = None
        """time.monotonic_ns() when the first byte came."""
        self.first_line_ns: int | None = None
        """The same for the first newline."""
        self._pieces = bytearray()

    def write(self, data: bytes) -> int:
        taken = len(data)
        if self.forward is not None:
            taken = self.forward.write(data)
            if taken == 0:
                return 0
            data = data[:taken]
        if self.first_line_ns is None:
            now = time.monotonic_ns()
            if self.first_byte_ns is None:
                self.first_byte_ns = now
            if b"\n" in data:
                self.first_line_ns = now
        if self.copy is not None:
            self.copy(data)
        self.total += taken
        self._pieces += data
        if len(self._pieces) > 2 * self.keep:  # trimmed seldom, so that a byte costs the same however long the log
            del self._pieces[: -self.keep]
        return taken

    def fileno(self) -> int:
        return -1 if self.forward is None else self.forward.fileno()

    def tail(self, size: int | None = None) -> bytes:
        """The last `size` bytes, at most `keep`."""
        size = self.keep if size is None else min(size, self.keep)
        return bytes(self._pieces[-size:]) if size > 0 else b""

    def text(self, lines: int | None = None) -> str:
        """The log as text, or its last `lines` lines; what is not UTF-8 is replaced."""
        text = self.tail().decode("utf-8", "replace").replace("\r\n", "\n")
        if lines is None:
            return text
        return "\n".join(text.rstrip("\n").split("\n")[-lines:])
