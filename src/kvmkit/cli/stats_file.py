"""The file of --stats: looked at before anything starts, written whole at the end."""

from __future__ import annotations

import os
import stat

from kvmkit.errors import BadInput, HostError


def check(path: str | None) -> None:
    """Raise BadInput when nothing can be written at `path`."""
    if path is None:
        return
    try:
        mode = os.stat(path).st_mode
    except FileNotFoundError:
        directory = os.path.dirname(path) or "."
        if not path or not os.path.isdir(directory):
            raise BadInput(f"--stats {path}: there is no directory {directory}") from None
        if not os.access(directory, os.W_OK | os.X_OK):
            raise BadInput(f"--stats {path}: can't write in {directory}") from None
        return
    except OSError as error:
        raise BadInput(f"--stats {path}: {error.strerror}") from None
    if stat.S_ISDIR(mode):
        raise BadInput(f"--stats {path}: is a directory")
    if not os.access(path, os.W_OK):
        raise BadInput(f"--stats {path}: can't write to it")


def write(path: str | None, data: bytes) -> None:
    """Write it: in place where `path` is a pipe or device or in a directory of others, else by a temporary file."""
    if path is None:
        return
    # /dev/stdout and /dev/fd/N lead to pipes that have no name: such a path is opened as it is.
    in_place = os.path.exists(path) and not os.path.isfile(path)
    real = path if in_place else os.path.realpath(path)
    temporary = f"{real}.{os.getpid()}.tmp"
    try:
        if not in_place and os.access(os.path.dirname(real), os.W_OK | os.X_OK):
            with open(temporary, "wb") as file:
                file.write(data)
                file.flush()
                os.fsync(file.fileno())
            os.replace(temporary, real)
        else:
            with open(real, "wb") as file:
                file.write(data)
    except OSError as error:
        raise HostError(f"--stats {path}: {error.strerror}") from None
