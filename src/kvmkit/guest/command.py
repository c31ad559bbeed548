"""One command in the guest, as its host sees it: where its streams come from and go to, and how it ended."""

from __future__ import annotations

import errno
import os

from kvmkit.errors import KvmkitError
from kvmkit.guest.protocol import SERIAL, Limits, ProtocolError, Stage

NOT_EXECUTABLE = 126
NOT_FOUND = 127
SIGNALLED = 128  # plus the signal's number, as a shell has it


class Output:
    """stdout or stderr of a command: what came and is not yet written to `fd`. Never more than the window.

    `piece`: bytes to write at once. The default is what a pipe that is ready surely takes, as `fd` may be one that
    blocks.
    """

    def __init__(self, fd: int | None, piece: int = 4096, window: int = SERIAL.output_window) -> None:
        self.fd = fd
        self._piece = piece
        self.pending = bytearray()
        self._full = self._window = window
        self._owed = 0

    def receive(self, data: bytes) -> None:
        self._window -= len(data)
        if self._window < 0:
            raise ProtocolError("the guest's agent sent more output than it was given room for")
        if self.fd is None:
            self._owed += len(data)
        else:
            self.pending += data

    def write(self) -> bool:
        """Write some; call it when `fd` is ready. False: the reader of `fd` has gone."""
        assert self.fd is not None
        try:
            done = os.write(self.fd, self.pending[: self._piece])
        except BlockingIOError:
            return True
        except OSError as error:
            if error.errno not in (errno.EPIPE, errno.EIO):
                raise KvmkitError(f"can't write the guest command's output: {error.strerror}") from None
            self.discard()
            return False
        del self.pending[:done]
        self._owed += done
        return True

    def discard(self) -> None:
        """Throw away what is pending and all that comes."""
        self._owed += len(self.pending)
        self.pending.clear()
        self.fd = None

    def credit(self) -> int:
        """Bytes the guest may send more, to be told it now; 0 while too few to be worth a frame."""
        if self._owed < self._full // 2:
            return 0
        owed, self._owed = self._owed, 0
        self._window += owed
        return owed


class Command:
    """`status` is None while it runs, then what a shell would have in `$?`."""

    def __init__(
        self,
        identity: int,
        name: str,
        stdin: int | None,
        out: Output,
        err: Output,
        *,
        cwd: str = "",
        user: str = "",
        tty: bool = False,
        limits: Limits = SERIAL,
    ) -> None:
        self.id = identity
        self.name = name
        self.cwd = cwd
        self.user = user
        self.limits = limits
        self.tty = tty
        self.stdin = stdin  # None: nothing (more) is read
        self.window = limits.stdin_window
        self.outputs = {1: out, 2: err}
        self.pid: int | None = None
        self.status: int | None = None
        self.error: KvmkitError | None = None
        """Why nothing more can be known of it, or its output can't be written."""

    @property
    def done(self) -> bool:
        return self.status is not None and not any(output.pending for output in self.outputs.values())

    def detach(self) -> None:
        """Leave the caller's descriptors alone from now on."""
        self.stdin = None
        for output in self.outputs.values():
            output.discard()

    def credited(self, amount: int) -> None:
        self.window += amount
        if self.window > self.limits.stdin_window:
            raise ProtocolError("the guest's agent took more input than it was sent")

    def exited(self, how: int, value: int) -> None:
        self.status = SIGNALLED + value if how else value
        self.stdin = None

    def failed(self, stage: int, number: int) -> None:
        """It did not start: say why on its stderr, as a shell would, with a shell's status."""
        self.stdin = None
        reason = os.strerror(number)
        if stage == Stage.EXEC and number == errno.ENOENT and "/" not in self.name:
            reason = "command not found"
        what = self.cwd if stage == Stage.DIRECTORY else self.name
        if stage == Stage.USER:
            what = self.user
            reason = "no such user in the guest" if number == errno.ESRCH else reason
        missing = number in (errno.ENOENT, errno.ENOTDIR)
        self.status = NOT_FOUND if stage == Stage.EXEC and missing else NOT_EXECUTABLE
        line = f"kvmkit: {what}: {reason}\n".encode(errors="surrogateescape")
        if self.outputs[2].fd is not None:
            self.outputs[2].pending += line
