"""A file with the process number of a VM: locked while the VM runs, so that no other takes it, and gone with it."""

from __future__ import annotations

import fcntl
import os
from types import TracebackType

from kvmkit.errors import BadInput


class PidFile:
    """Raises BadInput, in a line, when it can't be written or another process has it."""

    def __init__(self, path: str) -> None:
        self.path = path
        self._fd = -1
        try:
            self._fd = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)
            fcntl.flock(self._fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            os.ftruncate(self._fd, 0)
            os.write(self._fd, f"{os.getpid()}\n".encode())
        except OSError as error:
            taken = isinstance(error, BlockingIOError)
            self._close()
            raise BadInput(f"pidfile {path}: {'it is of a VM that runs' if taken else error.strerror}") from error

    def close(self) -> None:
        if self._fd >= 0:
            try:
                os.unlink(self.path)
            except OSError:
                pass
        self._close()

    def _close(self) -> None:
        if self._fd >= 0:
            os.close(self._fd)
            self._fd = -1

    def __enter__(self) -> PidFile:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()
