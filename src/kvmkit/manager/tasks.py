"""What a connection to a VM's process waits for: a command's end, the VM's end, the console, numbers."""

from __future__ import annotations

import os
import signal
import stat
import time
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.manager.messages import More, Request
from kvmkit.manager.server import Peer

if TYPE_CHECKING:
    from kvmkit.guest.client import AgentClient
    from kvmkit.guest.command import Command
    from kvmkit.manager.console import ConsoleTap

AGENT_SECONDS = 300.0
"""A guest whose agent has not answered by then hangs: the slowest boot seen took a tenth of it."""
LARGE_PIECE = 1 << 16


class Wait:
    """For the VM's end."""

    def __init__(self, peer: Peer) -> None:
        self.peer = peer

    def more(self, message: More) -> None:
        raise BadInput("there is nothing more to say")

    def keys(self, data: bytes) -> None: ...

    def gone(self) -> None: ...

    def look(self, now: float) -> float | None:
        return None

    def ended(self, ended: dict[str, Any]) -> None:
        self.peer.say({"ended": ended})


class Ready(Wait):
    """For the guest's agent."""

    def __init__(self, peer: Peer, client: AgentClient, timeout: float | None) -> None:
        super().__init__(peer)
        self._client = client
        self._until = time.monotonic() + (AGENT_SECONDS if timeout is None else timeout)

    def look(self, now: float) -> float | None:
        if self._client.broken is not None:
            raise self._client.broken
        if self._client.greeted:
            self.peer.say({"ok": True})
            self.peer.task = None
            self.peer.closing = True
        elif now >= self._until:
            raise KvmkitError("the guest's agent does not answer (see `kvmkit logs`)")
        return self._until

    def ended(self, ended: dict[str, Any]) -> None:
        self.peer.say({"error": "the VM ended before its agent answered"})


class Stats(Wait):
    """Numbers, every `every` seconds."""

    def __init__(self, peer: Peer, every: float, numbers: Callable[[], dict[str, Any]]) -> None:
        super().__init__(peer)
        self._every = min(max(every, 0.05), 3600.0)
        self._numbers = numbers
        self._next = time.monotonic()

    def look(self, now: float) -> float | None:
        if now >= self._next:
            self._next = now + self._every
            if not self.peer.out:
                self.peer.say(self._numbers())
        return self._next


class Console(Wait):
    """The console's bytes, both ways. What is typed while the guest takes nothing is lost, as on a real line."""

    def __init__(self, peer: Peer, tap: ConsoleTap, keyboard: int) -> None:
        super().__init__(peer)
        self._tap = tap
        self._keyboard = keyboard
        self._attached = False

    def look(self, now: float) -> float | None:
        if not self._attached and not self.peer.out:  # the answer is sent: from here on it is the console's
            self._attached = True
            self._tap.attach(self.peer.socket)
        return None if self._attached else now

    def keys(self, data: bytes) -> None:
        try:
            os.write(self._keyboard, data)
        except BlockingIOError:
            pass

    def gone(self) -> None:
        self._tap.detach(self.peer.socket)

    def ended(self, ended: dict[str, Any]) -> None:
        self._tap.detach(self.peer.socket)


class Exec(Wait):
    """A command in the guest, with the client's own descriptors as its streams.

    `left` is called with a command whose client has gone: it has been sent SIGHUP, and is to end.
    """

    def __init__(self, peer: Peer, client: AgentClient, request: Request, left: Callable[[Command], None]) -> None:
        super().__init__(peer)
        self._client = client
        self._request = request
        self._left = left
        self._command: Command | None = None
        self._kill_at: float | None = None
        self._end: float | None = None
        self._agent_until = time.monotonic() + AGENT_SECONDS
        given = peer.take_descriptors()
        if len(given) != (1 if request.verb in ("read", "write") else 3 if request.stdin else 2):
            for fd in given:
                os.close(fd)
            raise BadInput(f"{request.verb}: its streams' descriptors did not come with the request")
        self._descriptors = given
        self._patient = True
        """No write to the streams can block."""
        for index, fd in enumerate(given):
            self._descriptors[index] = self._own(
                fd, writing=request.verb == "read" or index > 0 or not (request.stdin or request.verb == "write")
            )

    def _own(self, fd: int, *, writing: bool) -> int:
        """The same file, opened once more so that it can be made not to block: O_NONBLOCK belongs to the open file,
        which is the client's as well. Where it can't be, the descriptor as it came."""
        mode = os.fstat(fd).st_mode
        if stat.S_ISREG(mode):
            return fd
        self_path = f"/proc/self/fd/{fd}"
        flags = (os.O_WRONLY if writing else os.O_RDONLY) | os.O_NONBLOCK | os.O_NOCTTY | os.O_CLOEXEC
        if stat.S_ISFIFO(mode) or stat.S_ISCHR(mode):
            try:
                own = os.open(self_path, flags)
            except OSError:
                self._patient = self._patient and not writing
                return fd
            os.close(fd)
            return own
        self._patient = self._patient and not writing
        return fd

    def _start(self) -> None:
        request = self._request
        streams = list(self._descriptors)
        stdin = streams.pop(0) if request.stdin else None
        try:
            self._command = self._client.start(
                request.argv,
                env=request.env,
                cwd=request.cwd,
                user=request.user,
                tty=request.tty,
                stdin=stdin,
                stdout=streams[0],
                stderr=streams[1],
                size=request.size,
                piece=LARGE_PIECE if self._patient else 4096,
            )
        except UnicodeError:
            raise BadInput("exec: an argument holds what is no text") from None
        if request.timeout is not None:
            self._end = time.monotonic() + request.timeout

    def look(self, now: float) -> float | None:
        command = self._command
        if command is None:
            if self._client.broken is not None:
                raise self._client.broken
            if not self._client.greeted:
                if now >= self._agent_until:
                    raise KvmkitError("the guest's agent does not answer (see `kvmkit logs`)")
                return self._agent_until
            self._start()
            return now  # the loop has to send it
        if command.error is not None:
            self._client.signal(command, signal.SIGKILL)
            raise command.error
        if command.done:
            self._over({"exit": command.status})
            return None
        if self._end is not None and now >= self._end:
            self._client.signal(command, signal.SIGKILL)
            command.detach()
            self._over({"error": f"{command.name}: did not end within {self._request.timeout:g} s", "status": 124})
        return self._end

    def _over(self, answer: dict[str, Any]) -> None:
        self.peer.say(answer)
        self.peer.task = None
        self.peer.closing = True
        self._close()

    def _close(self) -> None:
        if self._command is not None:
            self._command.detach()
        for fd in self._descriptors:
            os.close(fd)
        self._descriptors = []

    def more(self, message: More) -> None:
        if self._command is None:
            return
        if message.resize is not None:
            self._client.resize(self._command, *(max(each, 0) for each in message.resize))
        if 1 <= message.signal <= 64:
            self._client.signal(self._command, message.signal)

    def gone(self) -> None:
        """The client has ended: so does its command."""
        command = self._command
        self._close()
        if command is not None and command.status is None and command.error is None:
            self._client.signal(command, signal.SIGHUP)
            self._left(command)

    def ended(self, ended: dict[str, Any]) -> None:
        command = self._command
        if command is not None and command.done:
            self.peer.say({"exit": command.status})
        else:
            name = self._request.argv[0] if self._request.argv else "the command"
            self.peer.say({"error": f"the VM ended before {name} did: {ended.get('reason', '')}"})
        self.peer.task = None
        self._close()


class Transfer(Exec):
    """The bytes of one file of the guest's (`argv[0]`), to the client's descriptor (`read`) or from it (`write`).

    Ends as a command does; its status is 0 or an errno of the guest's.
    """

    def _start(self) -> None:
        request = self._request
        path = request.argv[0] if request.argv else ""
        try:
            if request.verb == "read":
                self._command = self._client.read_file(path, self._descriptors[0], LARGE_PIECE)
            else:
                self._command = self._client.write_file(path, self._descriptors[0])
        except UnicodeError:
            raise BadInput(f"{request.verb}: the file's name is no text") from None
        if request.timeout is not None:
            self._end = time.monotonic() + request.timeout
