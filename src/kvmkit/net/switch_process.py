"""The process of a switch: `python -m kvmkit.net.switch_process PATH LISTENER-FD LOCK-FD`, and how it is started.

It is a process of its own, so that no VM's end takes the others' network away. The first VM that names a switch starts
it; it ends when the last one has left. A lock keeps the one who connects and the one who ends apart.
"""

from __future__ import annotations

import fcntl
import os
import signal
import socket
import sys
from pathlib import Path
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput, HostError
from kvmkit.paths import runtime_dir

if TYPE_CHECKING:
    import subprocess

IDLE_SECONDS = 1.0
"""How long it goes on with nobody connected."""
MOST_NAME = 40
_started: list[subprocess.Popen[bytes]] = []
"""Kept, as they outlive what a VM's process does with them."""


def connect(name: str) -> socket.socket:
    """A port of this user's switch `name`, which is started if it is not there. BadInput, HostError."""
    check_name(name)
    directory = runtime_dir() / "switches"
    path = directory / f"{name}.sock"
    try:
        directory.mkdir(mode=0o700, exist_ok=True)
        lock = os.open(directory / f"{name}.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    except OSError as error:
        raise HostError(f"switch={name}: can't use {directory}: {error.strerror}") from None
    try:
        fcntl.flock(lock, fcntl.LOCK_EX)
        port = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            port.connect(str(path))
        except OSError:
            try:
                _start(path, lock)
                port.connect(str(path))
            except OSError as error:
                port.close()
                raise HostError(f"switch={name}: can't start it at {path}: {error.strerror or error}") from None
        return port
    finally:
        os.close(lock)


def check_name(name: str) -> None:
    if not 0 < len(name) <= MOST_NAME or not all(c.isascii() and (c.isalnum() or c in "-_") for c in name):
        raise BadInput(f"switch={name}: a switch's name is letters, digits, - and _, up to {MOST_NAME}")


def _start(path: Path, lock: int) -> None:
    import subprocess  # every run with a card's option comes by here; few start a switch

    path.unlink(missing_ok=True)  # of one that was killed
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as listener:
        listener.bind(str(path))
        listener.listen(64)
        # The lock itself is not handed on: that descriptor would hold it.
        own = os.open(path.with_suffix(".lock"), os.O_RDWR | os.O_CLOEXEC)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "kvmkit.net.switch_process", str(path), str(listener.fileno()), str(own)],
                stdin=subprocess.DEVNULL,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                pass_fds=[listener.fileno(), own],
                start_new_session=True,
                cwd="/",
                env={**os.environ, "PYTHONPATH": os.pathsep.join(part for part in sys.path if part)},
            )
            _started.append(process)
        finally:
            os.close(own)


def main(argv: list[str]) -> int:
    path, listener, lock = argv[1], int(argv[2]), int(argv[3])
    from kvmkit.net.switch import Switch

    for ignored in (signal.SIGINT, signal.SIGHUP, signal.SIGPIPE):
        signal.signal(ignored, signal.SIG_IGN)
    listening = socket.socket(fileno=listener)
    listening.setblocking(False)
    switch = Switch(listening)
    while True:
        if switch.run(IDLE_SECONDS) or switch.count:
            continue
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            continue  # somebody is about to connect
        switch.accept()  # or has just done it
        if not switch.count:
            os.unlink(path)
            switch.close()
            return 0
        fcntl.flock(lock, fcntl.LOCK_UN)


if __name__ == "__main__":
    sys.exit(main(sys.argv))
