"""This terminal, or these pipes, attached to a running VM: a command in its guest, or its console."""

from __future__ import annotations

import os
import select
from typing import TYPE_CHECKING

from kvmkit import terminal
from kvmkit.cli.named import SHELL
from kvmkit.errors import BadInput, KvmkitError
from kvmkit.manager import control, wire
from kvmkit.manager.wire import Connection

if TYPE_CHECKING:
    from kvmkit.manager.home import Home

LEFT = 130
"""Our exit status when the escape key left a command."""
PIECE = 1 << 16


def execute(
    home: Home,
    argv: list[str],
    *,
    env: dict[str, str],
    cwd: str = "",
    user: str = "",
    tty: bool = False,
    interactive: bool = False,
    timeout: float | None = None,
) -> int:
    """Run a command in the guest with this process's streams; returns its status."""
    if not argv:
        if not tty:
            raise BadInput("COMMAND is missing; a shell is had by -it (see `kvmkit help exec`)")
        argv = SHELL
    if any("\udc80" <= c <= "\udcff" for text in [*argv, *env.values(), cwd, user] for c in text):
        raise BadInput("exec: arguments must be UTF-8")
    if tty and not (os.isatty(0) and os.isatty(1)):
        raise BadInput("--tty: standard input and output are no terminal; leave it away")
    # A terminal's keys come by way of us: its job control is this process's, and so is the escape key.
    relay = Relay(escape=tty) if interactive and os.isatty(0) else None
    stdin = [relay.reading if relay is not None else 0] if interactive else []
    if tty:
        env = {"TERM": os.environ.get("TERM") or "vt100", **env}
    connection: Connection | None = None
    try:
        with terminal.raw(0 if tty else -1):
            connection = control.request(
                home,
                "exec",
                [*stdin, 1, 2],
                argv=argv,
                env=env,
                cwd=cwd,
                user=user,
                tty=tty,
                stdin=interactive,
                size=terminal.size(0),
                timeout=timeout,
            )
            try:
                if relay is None:
                    return _status(connection, argv[0])
                relay.begin()
                return _relayed(connection, relay, argv[0], tty)
            except wire.Refused as refused:
                if tty:
                    raise
                from kvmkit.manager import foreign

                return foreign.execute(
                    home, refused, argv, stdin=0 if interactive else None, env=env, cwd=cwd, user=user, timeout=timeout
                )
    finally:
        if connection is not None:
            connection.close()
        if relay is not None:
            relay.close()


def _status(connection: Connection, name: str) -> int:
    answer = connection.receive()
    if answer is None:
        raise KvmkitError(f"the VM's process ended before {name} did")
    return int(answer["exit"])


class Relay:
    """Standard input, passed on by a pipe that nobody has to wait for."""

    def __init__(self, *, escape: bool) -> None:
        self.reading, self.writing = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self.writing, False)
        self.pending = bytearray()
        self.ended = False
        self.escape = terminal.EscapeKey() if escape else None

    def begin(self) -> None:
        """The other end has its descriptor."""
        os.close(self.reading)
        self.reading = -1

    def read(self) -> None:
        try:
            data = os.read(0, 4096)
        except OSError:  # the terminal hung up
            data = b""
        self.ended = not data
        self.pending += self.escape.feed(data) if self.escape is not None else data
        self.write()

    def write(self) -> None:
        try:
            if self.pending:
                del self.pending[: os.write(self.writing, self.pending)]
        except BlockingIOError:
            return
        except OSError:
            self.pending.clear()
            self.ended = True
        if self.ended and not self.pending:
            self.close()

    def close(self) -> None:
        for fd in (self.reading, self.writing):
            if fd >= 0:
                os.close(fd)
        self.reading = self.writing = -1


def _relayed(connection: Connection, relay: Relay, name: str, tty: bool) -> int:
    """Pass on what is typed, and the terminal's size, until the command has ended."""
    resized = False

    def changed() -> None:
        nonlocal resized
        resized = True

    with terminal.waking() as signals, terminal.on_resize(changed):
        while True:
            poll = select.poll()
            poll.register(connection, select.POLLIN)
            poll.register(signals, select.POLLIN)
            if relay.writing >= 0:
                if relay.pending:
                    poll.register(relay.writing, select.POLLOUT)
                elif not relay.ended:
                    poll.register(0, select.POLLIN)
            ready = dict(poll.poll())
            if signals in ready:
                terminal.drain(signals)
            if resized and tty:
                resized = False
                connection.send({"resize": terminal.size(0)})
            if 0 in ready:
                relay.read()
                if relay.escape is not None and relay.escape.pressed:
                    return LEFT
            if relay.writing >= 0 and relay.writing in ready:
                relay.write()
            if connection.fileno() in ready:
                return _status(connection, name)


def console(home: Home) -> int:
    """The console on this terminal until the escape key, the end of the input, or the VM's end."""
    from kvmkit.cli.main import say

    connection = control.request(home, "console")
    try:
        if connection.receive(wire.REPLY_SECONDS) is None:
            raise KvmkitError("the VM's process has gone")
        attended = os.isatty(0)
        if attended:
            say(f"the console of {home.name}; {terminal.EscapeKey.NAME} leaves it, and the VM goes on")
        with terminal.raw(0), terminal.waking() as signals:
            return _carry(connection, attended, signals)
    finally:
        connection.close()


def _carry(connection: Connection, attended: bool, signals: int) -> int:
    escape = terminal.EscapeKey()
    link = connection.socket
    link.settimeout(None)
    _show(connection.rest())
    poll = select.poll()
    poll.register(link, select.POLLIN)
    poll.register(0, select.POLLIN)
    poll.register(signals, select.POLLIN)
    while True:
        ready = dict(poll.poll())
        if signals in ready:
            terminal.drain(signals)
        if link.fileno() in ready:
            try:
                data = link.recv(PIECE)
            except ConnectionError:
                data = b""
            if not data:
                return 0
            _show(data)
        if 0 in ready:
            try:
                data = os.read(0, 1024)
            except OSError:
                data = b""
            if not data:
                if attended:
                    return 0
                poll.unregister(0)  # what comes is shown to the VM's end
                continue
            data = escape.feed(data) if attended else data
            if escape.pressed:
                return 0
            try:
                link.sendall(data)
            except (BrokenPipeError, ConnectionError):
                return 0


def _show(data: bytes) -> None:
    view = memoryview(data)
    while view:
        view = view[os.write(1, view) :]
