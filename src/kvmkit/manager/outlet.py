"""Where a guest's console leads beside the terminal: a file, a pseudo-terminal, a socket, or nowhere.

Text forms, as `serial` of a VmSpec has them: "" (the terminal), "null", "file:PATH", "pty", "unix:PATH". Who does not
read misses output; the guest never waits.
"""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.manager.vmm import Vmm

FORMS = ("null", "pty", "file:PATH", "unix:PATH")
PIECE = 1 << 12


def check(text: str) -> None:
    """Raise BadInput, in a line, for what is none of the forms."""
    kind, _, path = text.partition(":")
    if text not in ("", "null", "pty") and not (kind in ("file", "unix") and path and "\0" not in path):
        raise BadInput(f"serial {text}: it is one of {', '.join(FORMS)}")
    if kind == "unix" and len(os.fsencode(path)) > 107:
        raise BadInput(f"serial {text}: a socket's path has up to 107 bytes")


def attach(vmm: Vmm, text: str, say: Callable[[str], None]) -> Outlet | None:
    """Lead the console of `vmm`, not started yet, there; `say` tells where that is. Raises BadInput when it can't."""
    kind, _, path = text.partition(":")
    if kind not in ("file", "pty", "unix"):
        return None
    try:
        outlet: Outlet = {"file": FileOutlet, "pty": PtyOutlet, "unix": SocketOutlet}[kind](vmm, path)
    except OSError as error:
        raise BadInput(f"serial {text}: {error.strerror}") from error
    if outlet.where:
        say(f"the guest's serial port is at {outlet.where}")
    vmm.tap.also = outlet.take
    return outlet


class Outlet:
    """`take` is called on the machine's threads, `close` when they have ended."""

    where = ""

    def take(self, data: bytes) -> None:
        raise NotImplementedError

    def close(self) -> None:
        raise NotImplementedError


class FileOutlet(Outlet):
    def __init__(self, vmm: Vmm, path: str) -> None:
        self._fd = os.open(path, os.O_WRONLY | os.O_CREAT | os.O_TRUNC | os.O_CLOEXEC | os.O_NONBLOCK, 0o644)

    def take(self, data: bytes) -> None:
        try:
            os.write(self._fd, data)
        except OSError:
            pass

    def close(self) -> None:
        os.close(self._fd)


class PtyOutlet(Outlet):
    def __init__(self, vmm: Vmm, path: str) -> None:
        self._fd, self._held = os.openpty()  # with one end open here, the other may come and go
        import tty  # seldom used, and slow to import

        tty.setraw(self._held)
        os.set_blocking(self._fd, False)
        self.where = os.ttyname(self._held)
        vmm.server.watch(self._fd, lambda events: self._keys(vmm))

    def _keys(self, vmm: Vmm) -> None:
        try:
            vmm.type(os.read(self._fd, PIECE))
        except OSError:
            pass

    def take(self, data: bytes) -> None:
        try:
            os.write(self._fd, data)
        except OSError:
            pass  # nobody reads

    def close(self) -> None:
        os.close(self._fd)
        os.close(self._held)


class SocketOutlet(Outlet):
    """One client at a time; the next is taken when it has gone."""

    def __init__(self, vmm: Vmm, path: str) -> None:
        self._vmm = vmm
        self._path = path
        self._client: socket.socket | None = None
        self._listener = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM | socket.SOCK_NONBLOCK)
        try:
            _unlink_dead(path)
            self._listener.bind(path)
            self._listener.listen(1)
        except BaseException:
            self._listener.close()
            raise
        self.where = path
        vmm.server.watch(self._listener.fileno(), lambda events: self._accept())

    def _accept(self) -> None:
        try:
            client, _ = self._listener.accept()
        except OSError:
            return
        client.setblocking(False)
        self._vmm.server.forget(self._listener.fileno())
        self._vmm.server.watch(client.fileno(), lambda events: self._keys(client))
        self._client = client

    def _keys(self, client: socket.socket) -> None:
        try:
            data = client.recv(PIECE)
        except BlockingIOError:
            return
        except OSError:
            data = b""
        if data:
            self._vmm.type(data)
            return
        self._client = None
        self._vmm.server.forget(client.fileno())
        client.close()
        self._vmm.server.watch(self._listener.fileno(), lambda events: self._accept())

    def take(self, data: bytes) -> None:
        client = self._client
        if client is not None:
            try:
                client.send(data, socket.MSG_DONTWAIT | socket.MSG_NOSIGNAL)
            except OSError:
                pass

    def close(self) -> None:
        if self._client is not None:
            self._client.close()
        self._listener.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass


def _unlink_dead(path: str) -> None:
    """Take away a socket that nobody listens at any more."""
    with socket.socket(socket.AF_UNIX, socket.SOCK_STREAM) as probe:
        probe.settimeout(1)
        try:
            probe.connect(path)
        except ConnectionRefusedError:
            os.unlink(path)
        except OSError:
            pass
