"""Interrupt pins for devices that interrupt by writing an eventfd: a thread that looks at them, while any does."""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable


class PinWatcher:
    """Calls `rang()` on its thread when a watched eventfd was written. The thread begins with the first of them."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._watched: dict[int, Callable[[], None]] = {}
        self._wake = -1
        self._thread: threading.Thread | None = None

    def watch(self, fd: int, rang: Callable[[], None]) -> None:
        """Begin to watch `fd` (non-blocking); nothing happens when it is watched already."""
        with self._lock:
            if fd in self._watched:
                return
            self._watched[fd] = rang
            if self._thread is None:
                self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
                self._thread = threading.Thread(target=self._run, name="pci-pins", daemon=True)
                self._thread.start()
            else:
                os.eventfd_write(self._wake, 1)

    def forget(self, fd: int) -> None:
        with self._lock:
            if self._watched.pop(fd, None) is not None:
                os.eventfd_write(self._wake, 1)

    def close(self) -> None:
        """End the thread: nobody is called after this."""
        with self._lock:
            thread, self._thread = self._thread, None
            self._watched.clear()
            if thread is not None:
                os.eventfd_write(self._wake, 1)
        if thread is not None:
            thread.join()
            os.close(self._wake)

    def _run(self) -> None:
        while True:
            with self._lock:
                if self._thread is None:
                    return
                watched = dict(self._watched)
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            for fd in watched:
                poll.register(fd, select.POLLIN)
            for fd, _ in poll.poll():
                try:
                    os.eventfd_read(fd)
                except OSError:
                    continue  # forgotten meanwhile
                if fd in watched:
                    watched[fd]()
