"""Processes that are measured: started, bounded in time, and asked what they took."""

from __future__ import annotations

import os
import select
import signal
import subprocess
import tempfile
import time
from collections.abc import Callable, Sequence
from types import TracebackType
from typing import TYPE_CHECKING

from kvmkit.errors import KvmkitError

if TYPE_CHECKING:
    from kvmkit.guest.progress import Progress

WORDS = 400
"""How much of a failed process's last words is shown."""


class RunFailedError(KvmkitError):
    """One measured run did not come to its end: not a measurement."""


def take_turns(
    name: str,
    sides: Sequence[str],
    runs: int,
    run: Callable[..., object],
    *given: object,
    into: object,
    failures: list[str],
    progress: Progress,
    title: str = "",
) -> None:
    """`runs` rounds of `run(side, *given)`, whose results go to the lists of `into` with the sides' names.

    null, and a line in `failures`, for a run that failed. `title`: what progress calls it, if not by its name.
    """
    for number in range(runs):
        # Each round begins with another side: what slows this host down for a while then hits each in turn.
        turn = number % len(sides)
        for side in (*sides[turn:], *sides[:turn]):
            progress.step(f"{title or name}: round {number + 1} of {runs}, {side}")
            try:
                getattr(into, side).append(run(side, *given))
            except RunFailedError as error:
                getattr(into, side).append(None)
                failures.append(f"{name}, {side}, round {number + 1}: {error}")


class Child:
    """One process, from `started_ns` (of the monotonic clock) on. Leaving the block kills it if it still runs.

    `deadline_ns` bounds it: whatever waits for it here raises RunFailedError then.
    """

    def __init__(self, command: Sequence[str], timeout: float, *, pass_fds: Sequence[int] = (), pipe: bool = False):
        self.name = os.path.basename(command[0])
        self.timeout = timeout
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - open as long as the process is
        self.started_ns = time.monotonic_ns()
        self.deadline_ns = self.started_ns + int(timeout * 1e9)
        self._process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE if pipe else subprocess.DEVNULL,
            stderr=self._errors,
            pass_fds=tuple(pass_fds),
            bufsize=0,
        )
        self.pid = self._process.pid
        self._pidfd = os.pidfd_open(self.pid)
        self.cpu_seconds: float | None = None

    @property
    def output(self) -> int:
        """Its output's descriptor; with `pipe` only."""
        assert self._process.stdout is not None
        return self._process.stdout.fileno()

    def __enter__(self) -> Child:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self.cpu_seconds is None:
            self.send(signal.SIGKILL)
            self._reap()
        if self._process.stdout is not None:
            self._process.stdout.close()
        os.close(self._pidfd)
        self._errors.close()

    def send(self, number: signal.Signals) -> None:
        if self.cpu_seconds is None:
            signal.pidfd_send_signal(self._pidfd, number)

    def left(self) -> float:
        """Seconds until the deadline. Raises RunFailedError when there are none."""
        left = (self.deadline_ns - time.monotonic_ns()) / 1e9
        if left <= 0:
            raise self.failed(f"not done within {self.timeout:g} s")
        return left

    def wait(self, sample: Callable[[int], None] | None = None, every: float = 0.02) -> int:
        """Wait for its end; returns its exit status. `sample(pid)` is called now and then meanwhile."""
        poll = select.poll()
        poll.register(self._pidfd, select.POLLIN)
        while not poll.poll((min(self.left(), every) if sample else self.left()) * 1000):
            if sample:
                sample(self.pid)
        return self._reap()

    def read_line(self, expected: bytes) -> int:
        """Read from its output until the line `expected`; returns when it came, in monotonic ns."""
        assert self._process.stdout is not None
        fd = self._process.stdout.fileno()
        poll = select.poll()
        poll.register(fd, select.POLLIN)
        data = b""
        now = 0
        while not data.endswith(expected):
            if poll.poll(self.left() * 1000):
                byte = os.read(fd, 1)
                now = time.monotonic_ns()
                if not byte:
                    raise self.failed("ended too early")
                data += byte
        return now

    def failed(self, why: str) -> RunFailedError:
        """An error that says so, with what the process said last."""
        self._errors.seek(max(self._errors.seek(0, os.SEEK_END) - WORDS, 0))
        words = " ".join(self._errors.read().decode(errors="replace").split())
        return RunFailedError(f"{why}: {words}" if words else why)

    def _reap(self) -> int:
        _, status, usage = os.wait4(self.pid, 0)
        self.cpu_seconds = usage.ru_utime + usage.ru_stime
        self._process.returncode = os.waitstatus_to_exitcode(status)
        return self._process.returncode


def cpu_ns(pid: int) -> int:
    """CPU time of all threads of a process that are there now, exact to the scheduler's nanoseconds; 0: it has gone."""
    total = 0
    try:
        for task in os.listdir(f"/proc/{pid}/task"):
            with open(f"/proc/{pid}/task/{task}/schedstat", encoding="ascii") as file:
                total += int(file.read().split()[0])
    except (OSError, ValueError, IndexError):
        pass  # a thread that ended meanwhile
    return total


def status_bytes(pid: int, name: str) -> int | None:
    """A field such as VmHWM or RssShmem of /proc/PID/status, in bytes; None: the process has gone."""
    try:
        with open(f"/proc/{pid}/status", encoding="ascii", errors="replace") as file:
            for line in file:
                if line.startswith(f"{name}:"):
                    return int(line.split()[1]) * 1024
    except (OSError, ValueError, IndexError):
        pass
    return None


def resident_mapping(pid: int, size: int, slack: int = 4 << 20) -> int | None:
    """Resident bytes of the process's private anonymous read-write mapping of `size` to `size + slack` bytes.

    None when there is no such mapping, or more than one. Source: proc(5), /proc/PID/smaps.
    """
    found = []
    try:
        with open(f"/proc/{pid}/smaps", encoding="utf-8", errors="replace") as file:
            inside = False
            for line in file:
                words = line.split()
                if not words[0].endswith(":"):
                    low, high = (int(part, 16) for part in words[0].split("-"))
                    inside = words[1] == "rw-p" and len(words) == 5 and size <= high - low <= size + slack
                elif inside and words[0] == "Rss:":
                    found.append(int(words[1]) * 1024)
    except (OSError, ValueError, IndexError):
        return None
    return found[0] if len(found) == 1 else None
