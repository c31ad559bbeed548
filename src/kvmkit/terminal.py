"""The user's terminal: raw mode that is always undone, and its size."""

from __future__ import annotations

import os
import signal
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from types import FrameType


@contextmanager
def raw(fd: int) -> Iterator[None]:
    """Pass every key through unchanged, until the end of the block; nothing happens where `fd` is no terminal.

    SIGTERM, SIGHUP and SIGQUIT raise SystemExit meanwhile (in the main thread): their default would leave it raw.
    """
    if not os.isatty(fd):
        yield
        return
    import termios  # these two only where there is a terminal
    import tty

    saved = termios.tcgetattr(fd)
    with _raising(signal.SIGTERM), _raising(signal.SIGHUP), _raising(signal.SIGQUIT):
        try:
            tty.setraw(fd, termios.TCSADRAIN)
            yield
        finally:
            termios.tcsetattr(fd, termios.TCSADRAIN, saved)


@contextmanager
def _raising(number: signal.Signals) -> Iterator[None]:
    in_main = threading.current_thread() is threading.main_thread()
    if not in_main or signal.getsignal(number) is not signal.SIG_DFL:
        yield
        return

    def stop(number: int, frame: FrameType | None) -> None:
        signal.signal(number, signal.SIG_DFL)  # a second one ends it at once
        raise SystemExit(128 + number)

    signal.signal(number, stop)
    try:
        yield
    finally:
        signal.signal(number, signal.SIG_DFL)


def size(fd: int) -> tuple[int, int]:
    """(rows, columns); 24 by 80 where `fd` does not tell."""
    try:
        found = os.get_terminal_size(fd)
    except OSError:
        return 24, 80
    return (found.lines, found.columns) if found.lines and found.columns else (24, 80)


@contextmanager
def on_resize(changed: Callable[[], None]) -> Iterator[None]:
    """Call `changed` from the signal handler when the terminal's size changes; only in the main thread."""
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    previous = signal.signal(signal.SIGWINCH, lambda number, frame: changed())
    try:
        yield
    finally:
        signal.signal(signal.SIGWINCH, previous)


@contextmanager
def waking() -> Iterator[int]:
    """A descriptor that is readable once a signal has come, for whoever waits by poll: a signal that comes just before
    poll begins would else be looked at when poll ends, which may be never. What is in it (`drain`) means nothing more.
    Signals are Python's main thread's; in another one it is never readable.
    """
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    in_main = threading.current_thread() is threading.main_thread()
    before = signal.set_wakeup_fd(writing, warn_on_full_buffer=False) if in_main else -1
    try:
        yield reading
    finally:
        if in_main:
            signal.set_wakeup_fd(before, warn_on_full_buffer=False)
        os.close(reading)
        os.close(writing)


def drain(fd: int) -> None:
    """Take what is in the descriptor of `waking`, so that it waits again."""
    try:
        os.read(fd, 64)
    except BlockingIOError:
        pass


class EscapeKey:
    """The way out of a raw terminal: Ctrl-] and then x. Ctrl-] twice is one Ctrl-] for the guest."""

    PREFIX = 0x1D
    NAME = "Ctrl-] x"

    def __init__(self) -> None:
        self.pressed = False
        self._prefixed = False

    def feed(self, data: bytes) -> bytes:
        """What of the keys in `data` is the guest's. After `pressed` is set, nothing is."""
        passed = bytearray()
        for byte in data:
            if self.pressed:
                break
            if self._prefixed:
                self._prefixed = False
                if byte in b"xX":
                    self.pressed = True
                else:
                    passed += bytes([byte]) if byte == self.PREFIX else bytes([self.PREFIX, byte])
            elif byte == self.PREFIX:
                self._prefixed = True
            else:
                passed.append(byte)
        return bytes(passed)
