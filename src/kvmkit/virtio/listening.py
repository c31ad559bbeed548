"""Where a device listens for programs of the host's: a UNIX stream socket of the VM's owner."""

from __future__ import annotations

import os
import socket
import stat

from kvmkit.errors import BadInput, HostError

BACKLOG = 128
PATH_BYTES = 107


def listen(path: str, what: str) -> int:
    """The descriptor of a socket that listens at `path`, for this user alone; it does not block.

    One that a process left which has died is replaced. BadInput: the path can't be one, or is taken. `what` names the
    option in messages.
    """
    if len(os.fsencode(path)) > PATH_BYTES:
        raise BadInput(f"{what} {path}: a socket's path has at most {PATH_BYTES} bytes")
    _remove_stale(path, what)
    server = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
    try:
        before = os.umask(0o177)
        try:
            server.bind(path)
        finally:
            os.umask(before)
        server.listen(BACKLOG)
    except OSError as error:
        server.close()
        raise HostError(f"{what} {path}: can't listen there: {error.strerror or error}") from None
    return server.detach()


def _remove_stale(path: str, what: str) -> None:
    try:
        if not stat.S_ISSOCK(os.lstat(path).st_mode):
            raise BadInput(f"{what} {path}: is there already, and no socket: choose another path")
        with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK) as probe:
            probe.connect(path)
    except ConnectionRefusedError:
        os.unlink(path)
    except FileNotFoundError:
        return
    except BlockingIOError:
        raise BadInput(f"{what} {path}: another process listens there") from None
    except OSError as error:
        raise BadInput(f"{what} {path}: {error.strerror}") from None
    else:
        raise BadInput(f"{what} {path}: another process listens there")
