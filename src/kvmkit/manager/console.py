"""A VM's console: kept in a log of bounded size, and shown to whoever is attached."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable

LARGEST = 1 << 20
"""Bytes after which a log becomes the older one of two."""
OLDER = ".1"
RECENT = 16 << 10
"""What one who attaches is shown of what was said before."""


class RotatingLog:
    """A log in an open directory, of 2 * `largest` bytes at most. Not thread-safe.

    `full` is called, once until there is room again, with what the file system says.
    """

    def __init__(
        self, directory: int, name: str, largest: int = LARGEST, full: Callable[[str], None] | None = None
    ) -> None:
        self._directory = directory
        self.name = name
        self._largest = largest
        self._full = full
        self._failing = False
        self._fd = self._open()
        self._size = os.fstat(self._fd).st_size

    def _open(self) -> int:
        flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
        return os.open(self.name, flags, 0o600, dir_fd=self._directory)

    def write(self, data: bytes) -> None:
        """Append; what the disk has no room for is lost."""
        if self._fd < 0:
            return
        try:
            if self._size >= self._largest:
                self._rotate()
            self._size += os.write(self._fd, data)
            self._failing = False
        except OSError as error:
            if not self._failing and self._full is not None:
                self._full(error.strerror or "error")
            self._failing = True

    def _rotate(self) -> None:
        os.rename(self.name, self.name + OLDER, src_dir_fd=self._directory, dst_dir_fd=self._directory)
        fd = self._open()
        os.close(self._fd)
        self._fd, self._size = fd, 0

    def close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
        self._fd = -1


class ConsoleTap:
    """Takes all that a console says. A reader that is slow misses some of it, and is told so; the guest never waits."""

    def __init__(self, log: RotatingLog) -> None:
        self._log = log
        self._lock = threading.Lock()
        self._readers: dict[socket.socket, int] = {}
        """Each with the number of bytes it missed since it last took some."""
        self._recent = bytearray()
        self.also: Callable[[bytes], None] | None = None
        """Called with it too; must not block."""

    def __call__(self, data: bytes) -> None:
        with self._lock:
            self._log.write(data)
            self._recent += data
            if len(self._recent) > 2 * RECENT:
                del self._recent[:-RECENT]
            for reader in self._readers:
                self._send(reader, data)
            if self.also is not None:
                self.also(data)

    def _send(self, reader: socket.socket, data: bytes) -> None:
        missed = self._readers[reader]
        if missed:
            data = b"\r\n[kvmkit: %d bytes of the console are missing here]\r\n" % missed + data
        try:
            sent = reader.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            self._readers[reader] = len(data) - sent
        except BlockingIOError:
            self._readers[reader] = missed + len(data)
        except OSError:
            pass  # it has gone: whoever reads from it finds out

    def attach(self, reader: socket.socket) -> None:
        """From now on `reader`, a stream socket, is sent the console's output; first, the end of what there was."""
        with self._lock:
            self._readers[reader] = 0
            if self._recent:
                self._send(reader, bytes(self._recent[-RECENT:]))

    def detach(self, reader: socket.socket) -> None:
        with self._lock:
            self._readers.pop(reader, None)

    @property
    def readers(self) -> int:
        return len(self._readers)

    def close(self) -> None:
        with self._lock:
            self._readers.clear()
            self._log.close()
