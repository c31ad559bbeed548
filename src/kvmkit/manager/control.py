"""What is asked of a running VM, from another process: the client's side of its control socket."""

from __future__ import annotations

import time
from typing import Any

from kvmkit.errors import KvmkitError
from kvmkit.manager import wire
from kvmkit.manager.home import SOCKET, Home
from kvmkit.manager.record import Ended
from kvmkit.manager.wire import Connection, NotRunning, Refused

GONE_SECONDS = 10.0
"""Between a VM's end and its process's."""
START_SECONDS = 5.0
RENAME_SECONDS = 5.0
ANSWER_SECONDS = 30.0


def connect(home: Home) -> Connection:
    """Raises NotRunning, in one line that tells how it is, when it does not run."""
    end = time.monotonic() + START_SECONDS
    while True:
        try:
            return Connection(home.directory, SOCKET)
        except NotRunning:
            if not home.running():
                raise NotRunning(f"{home.name} is not running: {told(home)}") from None
            if time.monotonic() >= end:
                raise KvmkitError(f"{home.name} is starting, or ending: try again") from None
            time.sleep(0.01)


def request(home: Home, verb: str, descriptors: list[int] | None = None, **rest: Any) -> Connection:
    """A connection on which a request has been sent. Raises NotRunning."""
    connection = connect(home)
    try:
        connection.send({"kvmkit": wire.VERSION, "verb": verb, **rest}, descriptors)
    except BaseException:
        connection.close()
        raise
    return connection


def told(home: Home) -> str:
    """Why it does not run, in a few words."""
    noted = home.look()
    if noted.ended is None:
        return f"it has not been started (`kvmkit start {home.name}`)"
    return f"{noted.ended.reason}{f', {noted.ended.detail}' if noted.ended.detail else ''}"


def ask(home: Home, verb: str, *, timeout: float = ANSWER_SECONDS, **rest: Any) -> dict[str, Any]:
    """One request, one answer. Raises Refused and NotRunning."""
    connection = request(home, verb, **rest)
    try:
        answer = connection.receive(timeout)
    finally:
        connection.close()
    if answer is None:
        raise NotRunning(f"{home.name}: its process has gone")
    return answer


def rename(home: Home, name: str) -> None:
    """Give it another name; one that runs is found by it on its networks, too. BadInput: it can't be."""
    home.rename(name)
    if home.running():
        try:
            ask(home, "renamed", timeout=RENAME_SECONDS)
        except KvmkitError:
            pass  # it ends, or hangs: others find it by the new name when it is started again


def until_end(home: Home, verb: str, *, deadline: float | None = None, **rest: Any) -> Ended:
    """Ask for its end (`stop`, `kill`), or just wait for it (`wait`), and for its process's.

    `deadline`: seconds after which Refused is raised. A VM that is not running: how it ended.
    """
    try:
        connection = request(home, verb, **rest)
    except NotRunning:
        _process_gone(home)
        return _noted(home)
    until = None if deadline is None else time.monotonic() + deadline
    ended: Ended | None = None
    try:
        while True:
            left = None if until is None else max(until - time.monotonic(), 0.01)
            answer = connection.receive(left)
            if answer is None:
                break
            if "ended" in answer:
                ended = Ended(**answer["ended"])
    except NotRunning:
        pass  # it ended just now
    finally:
        connection.close()
    _process_gone(home)
    return ended or _noted(home)


def _process_gone(home: Home) -> None:
    end = time.monotonic() + GONE_SECONDS
    while home.running():
        if time.monotonic() >= end:
            raise Refused(f"{home.name}: its process does not end (see `kvmkit kill`)")
        time.sleep(0.002)


def _noted(home: Home) -> Ended:
    noted = home.look()
    return noted.ended or Ended(reason="not started", status=0)


def destroy(home: Home) -> Ended:
    """End it at once: by its socket, or, when its process does not answer, by SIGKILL."""
    try:
        return until_end(home, "kill", deadline=5.0)
    except Refused:
        pass
    kill_process(home)
    _process_gone(home)
    return _noted(home)


def kill_process(home: Home) -> None:
    """SIGKILL to the process that the record names, if it is still that one."""
    import os
    import signal

    from kvmkit.manager.record import process_ticks

    noted = home.load()
    if not home.running() or not noted.pid:
        return
    try:
        fd = os.pidfd_open(noted.pid)
    except OSError:
        return
    try:
        if process_ticks(noted.pid) == noted.ticks:
            signal.pidfd_send_signal(fd, signal.SIGKILL)
    except ProcessLookupError:
        pass
    finally:
        os.close(fd)
