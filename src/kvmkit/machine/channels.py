"""The pump: one thread that carries bytes between serial ports and descriptors, and calls devices when it is time."""

from __future__ import annotations

import os
import select
import threading
import time
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvmkit.devices.serial_state import BACKLOG_BYTES

if TYPE_CHECKING:
    from kvmkit.devices.lines import Timed
    from kvmkit.devices.serial import SerialPort

LOOK_AGAIN_NS = 4_000_000
"""How long a byte may wait in a port that the guest has not finished with: what one system call per burst costs."""
LAST_WORDS_NS = 1_000_000_000
READ_BYTES = 4096


class Channel:
    """A serial port, and the descriptor its input comes from; -1: none."""

    def __init__(self, port: SerialPort, source: int = -1) -> None:
        self.port = port
        self.source = source
        self.due: int | None = None
        """When the waiting bytes are to be flushed (monotonic ns)."""
        self.stalled = False
        """The sink took less than all."""
        self.seen = 0
        """`port.transmitted` when last looked at."""


class Pump:
    """Runs from `start` to `close`. `failed` is called when it can't go on, on its own thread."""

    def __init__(
        self,
        channels: Sequence[Channel],
        timed: Sequence[Timed],
        failed: Callable[[Exception], None],
        *,
        paused: bool = False,
    ) -> None:
        self._channels = channels
        self._timed = timed
        self._failed = failed
        self._wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self._closing = False
        self._pause = paused
        self._changed = threading.Condition()
        self._held = False
        self._thread = threading.Thread(target=self._run, name="pump", daemon=True)
        for channel in channels:
            channel.port.notify = self.wake
        for device in timed:
            device.rearm = self.wake

    def start(self) -> None:
        self._thread.start()

    def wake(self) -> None:
        """Have it look at everything now. Cheap; any thread may call it."""
        if not self._closing:
            os.eventfd_write(self._wake, 1)

    def pause(self) -> None:
        """Hold it between two rounds; come back when it is held. Nothing reaches a device from the host then."""
        with self._changed:
            self._pause = True
            self.wake()
            self._changed.wait_for(lambda: self._held or not self._thread.is_alive(), timeout=5)

    def resume(self) -> None:
        with self._changed:
            self._pause = False
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread, and give the guest's last words a second to be taken. The descriptors stay open."""
        with self._changed:
            if not self._closing:
                self._closing = True
                os.eventfd_write(self._wake, 1)
            self._changed.notify_all()
        if self._thread.ident is not None:
            self._thread.join()
        for channel in self._channels:
            channel.port.notify = _nothing
            try:
                _drain(channel.port)
            except Exception as error:  # a sink that is broken: the rest must be closed all the same
                self._failed(error)
        for device in self._timed:
            device.rearm = _nothing
        if self._wake >= 0:
            os.close(self._wake)
            self._wake = -1

    # The thread.

    def _run(self) -> None:
        try:
            poll = select.poll()
            poll.register(self._wake, select.POLLIN)
            watched: dict[int, int] = {}
            while self._hold():
                wanted, timeout = self._round()
                for fd in watched.keys() - wanted.keys():
                    poll.unregister(fd)
                for fd, events in wanted.items():
                    if watched.get(fd) != events:
                        poll.register(fd, events)
                watched = wanted
                ready = dict(poll.poll(timeout))
                if self._wake in ready:
                    os.eventfd_read(self._wake)
                for channel in self._channels:
                    if ready.get(channel.source, 0) & ~select.POLLOUT:
                        self._receive(channel)
        except Exception as error:
            self._failed(error)

    def _hold(self) -> bool:
        """Wait while paused; False when it is over."""
        with self._changed:
            while self._pause and not self._closing:
                self._held = True
                self._changed.notify_all()
                self._changed.wait()
            self._held = False
            return not self._closing

    def _round(self) -> tuple[dict[int, int], float | None]:
        """Do what is due; what to poll for, and how many milliseconds at most."""
        wanted: dict[int, int] = {}
        moments = []
        for channel in self._channels:
            moments.append(self._send(channel, wanted))
            port = channel.port
            if channel.source >= 0:
                port.starved = True  # first, so that no read of the guest's falls between the two
                if port.room() >= BACKLOG_BYTES // 2:
                    port.starved = False
                    wanted[channel.source] = wanted.get(channel.source, 0) | select.POLLIN
        for device in self._timed:
            left = device.deadline()
            if left is not None and left <= 0:
                device.expire()
                left = device.deadline()
            moments.append(left)
        soonest = min((moment for moment in moments if moment is not None), default=None)
        return wanted, None if soonest is None else max(soonest / 1e6, 0)

    def _send(self, channel: Channel, wanted: dict[int, int]) -> int | None:
        """Flush a port when its bytes have waited long enough; in how many nanoseconds to look again."""
        port = channel.port
        now = time.monotonic_ns()
        if port.pending:
            if channel.due is None:
                channel.due = now + LOOK_AGAIN_NS
            if channel.stalled or now >= channel.due:
                channel.stalled = port.flush() > 0
                channel.due = now + LOOK_AGAIN_NS
            if channel.stalled and (sink := port.sink.fileno()) >= 0:
                wanted[sink] = wanted.get(sink, 0) | select.POLLOUT
                return None
            return max(channel.due - now, 0)
        channel.due = None
        channel.stalled = False
        if port.watched and port.transmitted == channel.seen:
            port.watched = False
            if not port.pending:
                return None
            port.watched = True  # a byte came just before that line, and nobody was told
        channel.seen = port.transmitted
        return LOOK_AGAIN_NS if port.watched else None

    def _receive(self, channel: Channel) -> None:
        room = channel.port.room()
        if not room:
            return
        try:
            data = os.read(channel.source, min(room, READ_BYTES))
        except (BlockingIOError, InterruptedError):
            return
        except OSError:
            data = b""
        if data:
            channel.port.receive(data)
        else:
            channel.source = -1  # the other side is gone: there will be no input any more


def _drain(port: SerialPort) -> None:
    """Offer the rest to the sink for at most LAST_WORDS_NS."""
    end = time.monotonic_ns() + LAST_WORDS_NS
    while port.flush() and (left := end - time.monotonic_ns()) > 0:
        poll = select.poll()
        if (sink := port.sink.fileno()) >= 0:
            poll.register(sink, select.POLLOUT)
        poll.poll(min(left, LOOK_AGAIN_NS) / 1e6)


def _nothing() -> None:
    """The machine is over: nobody looks."""
