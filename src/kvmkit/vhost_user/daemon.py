"""A backend that is ours to start, to start again, and to end."""

from __future__ import annotations

import json
import os
import shutil
import socket
import subprocess
import sys
import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

from kvmkit.errors import HostError

END_SECONDS = 3.0
LAUNCH = Path(__file__).with_name("launch.py")


class Daemon:
    """A process that serves what connects to `address`; it ends when this one does, however that comes about.

    `arguments` gives its command line for a listening socket, an inherited descriptor. No name of that socket is
    left anywhere: it is found by a descriptor of ours. `user` and `readonly` are as kvmkit.vhost_user.launch has them.
    """

    def __init__(
        self,
        name: str,
        arguments: Callable[[int], Sequence[str]],
        *,
        user: bool = False,
        readonly: str = "",
        inherit: Sequence[int] = (),
    ) -> None:
        self.name = name
        self._arguments = arguments
        self._user, self._readonly = user, readonly
        self._inherit = tuple(inherit)
        self._process: subprocess.Popen[bytes] | None = None
        self._socket = -1
        self._said = os.memfd_create("kvmkit-daemon", os.MFD_CLOEXEC)
        self.starts = 0

    @property
    def address(self) -> str:
        return f"/proc/self/fd/{self._socket}"

    @property
    def pid(self) -> int:
        return self._process.pid if self._process is not None else 0

    def start(self) -> None:
        """Start it (again). Its end is seen by who is connected to it."""
        self.end()
        os.ftruncate(self._said, 0)
        os.lseek(self._said, 0, os.SEEK_SET)
        with self._listen() as listener:
            number = listener.fileno()
            what = {
                "parent": os.getpid(),
                "user": self._user,
                "readonly": self._readonly,
                "argv": [str(argument) for argument in self._arguments(number)],
            }
            self._process = subprocess.Popen(
                [sys.executable, "-I", "-S", str(LAUNCH), json.dumps(what)],
                stdin=subprocess.DEVNULL,
                stdout=self._said,
                stderr=self._said,
                pass_fds=(number, *self._inherit),
                start_new_session=True,  # Ctrl-C at the terminal is the VM's, which ends this in its turn
            )
            self.starts += 1

    def _listen(self) -> socket.socket:
        directory = tempfile.mkdtemp(prefix="kvmkit-")
        name = os.path.join(directory, "s")
        listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_CLOEXEC)
        try:
            listener.bind(name)
            listener.listen(1)
            self._socket = os.open(name, os.O_PATH | os.O_CLOEXEC)
        except OSError as error:
            listener.close()
            raise HostError(f"{self.name}: no socket for it: {error.strerror}") from error
        finally:
            shutil.rmtree(directory, ignore_errors=True)
        return listener

    @property
    def running(self) -> bool:
        return self._process is not None and self._process.poll() is None

    def why(self) -> str:
        """The last line it said."""
        size = os.fstat(self._said).st_size
        lines = os.pread(self._said, 4096, max(size - 4096, 0)).decode(errors="replace").strip().splitlines()
        last = lines[-1].rpartition("}: ")[2] if lines else ""  # without its own command line
        return "".join(c if c.isprintable() else "?" for c in last)[:300]

    def end(self) -> None:
        if self._process is not None:
            self._process.terminate()
            await_end(self._process, END_SECONDS)
            self._process = None
        if self._socket >= 0:
            os.close(self._socket)
            self._socket = -1

    def close(self) -> None:
        self.end()
        if self._said >= 0:
            os.close(self._said)
            self._said = -1


def await_end(process: subprocess.Popen[bytes], seconds: float) -> None:
    """Wait for a process that knows that it is to end; one that takes longer is killed."""
    try:
        process.wait(seconds)
    except subprocess.TimeoutExpired:
        process.kill()
        process.wait()


def find(program: str, elsewhere: Sequence[str] = ()) -> str:
    """Where a program is, in PATH or at one of these places; empty: nowhere."""
    found = shutil.which(program)
    return found or next((path for path in elsewhere if os.access(path, os.X_OK)), "")
