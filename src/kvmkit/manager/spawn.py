"""Start a VM's process in the background."""

from __future__ import annotations

import os
import signal
import sys
from pathlib import Path

import msgspec

from kvmkit.errors import BadInput, HostError, KvmkitError
from kvmkit.manager.home import PROCESS, Busy, Home
from kvmkit.manager.wire import Refused

OLDER = ".1"


def spawn(home: Home) -> None:
    """Start the VM of `home`, and come back when its first instruction runs.

    Raises Busy when it runs already, and what its process says when it can't start: one line, with its exit status.
    """
    if home.running():
        raise Busy(f"{home.name} is running already (see `kvmkit ps`)")
    reading, writing = os.pipe2(os.O_CLOEXEC)
    try:
        log = _log(home)
        try:
            pid = _spawn(home.current_name(), writing, log)
        finally:
            os.close(log)
            os.close(writing)
            writing = -1
        os.waitpid(pid, 0)  # it goes on as a process of its own
        with open(reading, "rb", closefd=False) as answers:
            text = answers.readline()
    finally:
        os.close(reading)
        if writing >= 0:
            os.close(writing)
    if not text.endswith(b"\n"):
        raise HostError(
            f"{home.name}: its process ended before it was started (see `kvmkit logs --process {home.name}`)"
        )
    answer = msgspec.json.decode(text)
    if "error" in answer:
        raise _error(str(answer["error"]), int(answer.get("status", 1)))


def _error(message: str, status: int) -> KvmkitError:
    return BadInput(message) if status == BadInput.exit_status else Refused(message, status)


def _log(home: Home) -> int:
    """A new vmm.log; the one before is kept."""
    if not home.running():
        try:
            os.rename(PROCESS, PROCESS + OLDER, src_dir_fd=home.directory, dst_dir_fd=home.directory)
        except OSError:
            pass
    flags = os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC
    return os.open(PROCESS, flags, 0o600, dir_fd=home.directory)


def _spawn(name: str, ready: int, log: int) -> int:
    import kvmkit

    source = str(Path(kvmkit.__file__).parent.parent)
    search = os.environ.get("PYTHONPATH", "")
    env = {**os.environ, "PYTHONPATH": f"{source}{os.pathsep}{search}" if search else source}
    inherited = 3 if ready != 3 else 4
    actions = [
        (os.POSIX_SPAWN_OPEN, 0, os.devnull, os.O_RDONLY, 0),
        (os.POSIX_SPAWN_DUP2, ready, inherited),
        (os.POSIX_SPAWN_DUP2, log, 1),
        (os.POSIX_SPAWN_DUP2, log, 2),
    ]
    defaults = [signal.SIGINT, signal.SIGTERM, signal.SIGHUP, signal.SIGPIPE, signal.SIGCHLD]
    words = [sys.executable, "-P", "-m", "kvmkit.manager.process", name, str(inherited)]
    return os.posix_spawn(
        sys.executable, words, env, file_actions=actions, setsid=True, setsigdef=defaults, setsigmask=[]
    )
