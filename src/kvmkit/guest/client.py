"""Talk to the agent in a guest: run commands there with this process's own stdin, stdout and stderr.

One thread, one poll loop, no asyncio: it must import in a few milliseconds, as every `kvmkit run` does.
An AgentClient is not thread-safe.
"""

from __future__ import annotations

import os
import select
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Final, Protocol

from kvmkit import terminal
from kvmkit.errors import KvmkitError
from kvmkit.guest.command import Command, Output
from kvmkit.guest.protocol import (
    FLAG_STDIN,
    FLAG_TTY,
    SERIAL,
    VSOCK,
    Decoder,
    Frame,
    Limits,
    ProtocolError,
    Type,
    encode,
    encode_exec,
    encode_file,
)

__all__ = ["AgentClient", "AgentGone", "CommandTimeout", "Escaped", "ProtocolError", "Woken"]

# More is not put on the channel at once, so that a guest's tty never has to drop any: its kernel keeps 64 KiB.
_IN_FLIGHT_MAX: Final = 5 * SERIAL.stdin_window
_READ_MAX: Final = 1 << 18
_TURNS_AFTER_WAKE: Final = 64
RESTART_NOISE: Final = 1 << 20
"""Bytes that a guest may have said before it restarted and that nobody has read."""


class AgentGone(KvmkitError):
    """The channel ended, or no agent spoke in time."""


class CommandTimeout(KvmkitError):
    """The command ran longer than it may; it has been sent SIGKILL."""

    exit_status = 124


class Woken(KvmkitError):
    """The caller's `wake` descriptor became readable: the machine has ended, or someone wants the loop back."""


class Escaped(KvmkitError):
    """The user pressed the escape key."""


class Companion(Protocol):
    """Whoever else is served by the client's loop: a control socket, say. Nothing of it may block."""

    def interest(self) -> Mapping[int, int]:
        """Descriptors, and the poll events that are waited for."""

    def ready(self, fd: int, events: int) -> None:
        """One of them is."""

    def after(self) -> float | None:
        """Called after each turn; the moment of the monotonic clock when it wants to be called again at the latest."""


class Link:
    """One of the channels to the agent."""

    def __init__(self, fd: int, limits: Limits) -> None:
        os.set_blocking(fd, False)
        self.fd = fd
        self.limits = limits
        self.decoder = Decoder(data_max=limits.data)
        self.out = bytearray()
        self.closed: Callable[[], None] = _nothing
        """Called once when the link is given up."""


class AgentClient:
    """`fd`: a stream to the agent's channel (a socket or pty). It is set non-blocking, and is the caller's to close.

    `wake`: a descriptor; when it becomes readable, whatever waits here raises Woken. It is never read.
    """

    def __init__(self, fd: int, wake: int | None = None) -> None:
        self._serial = Link(fd, SERIAL)
        self._fast: Link | None = None
        self._wake = wake
        self._commands: dict[int, Command] = {}
        self._next = 1
        self._resized = False
        self._after_wake = 0
        self._poll = select.poll()
        self._watched: dict[int, int] = {}
        self._again: float | None = None
        self.companion: Companion | None = None
        self.before_reading: Callable[[], object] = _nothing
        """Called between having bytes of the serial port and taking them: the moment to `restart` for a new boot's."""
        self.broken: KvmkitError | None = None
        """Why nothing is to be had from this agent any more."""

    # ---- what the caller does ----

    @property
    def greeted(self) -> bool:
        """The agent has said that it is ready."""
        return self._serial.decoder.greeted

    @property
    def fast(self) -> bool:
        """New commands go by vsock."""
        return self._fast is not None and self._fast.decoder.greeted

    def attach(self, fd: int, closed: Callable[[], None]) -> None:
        """A second channel: `fd`, a stream socket, until it ends; `closed` is called then. It replaces an older one."""
        self._detach(AgentGone("the guest's agent has connected again"))
        self._fast = Link(fd, VSOCK)
        self._fast.closed = closed

    def _detach(self, error: KvmkitError) -> None:
        """Give the second channel up; what runs by it fails."""
        link, self._fast = self._fast, None
        if link is not None:
            self._fail(error, [command for command in self._commands.values() if command.limits is VSOCK])
            if link.fd in self._watched:
                self._poll.unregister(link.fd)
                del self._watched[link.fd]
            link.closed()

    def turn(self) -> None:
        """Wait for something to do, and do it. Raises AgentGone, ProtocolError and Woken."""
        self._turn(None)

    def give_up(self, error: KvmkitError) -> None:
        """Leave the channel alone from now on; every command fails with `error`."""
        self.broken = error
        self._fail_all(error)

    def restart(self) -> None:
        """The guest has begun anew: its agent will greet again, and what ran is gone."""
        self._serial.decoder = Decoder(noise_max=RESTART_NOISE)
        self.broken = None
        self._fail_all(AgentGone("the guest restarted"))

    def _fail_all(self, error: KvmkitError) -> None:
        self._serial.out.clear()
        self._detach(error)
        self._fail(error, list(self._commands.values()))

    def _fail(self, error: KvmkitError, commands: list[Command]) -> None:
        for command in commands:
            command.error = command.error or error
            command.detach()
            self._commands.pop(command.id, None)

    def wait_hello(self, timeout: float | None = None) -> None:
        """Wait until the agent is ready. AgentGone: it isn't within `timeout` seconds, or the channel ended."""
        end = _deadline(timeout)
        while not self.greeted:
            if not self._turn(end):
                raise AgentGone(f"the guest's agent did not answer within {timeout:g} s")

    def start(
        self,
        argv: list[str],
        *,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        tty: bool = False,
        stdin: int | None = None,
        stdout: int | None = 1,
        stderr: int | None = 2,
        size: tuple[int, int] = (24, 80),
        piece: int = 4096,
        user: str = "",
    ) -> Command:
        """Start a command; `wait` moves its data. Descriptors stay the caller's; None is /dev/null.
        `piece`: bytes to write at once; more than the default only where stdout and stderr don't block.

        With `tty` it gets a terminal of `size` (rows, columns) and all its output comes on stdout.
        `env` is added to the agent's PATH and HOME. `user`: a name or number of the guest's; it is root's otherwise.
        BadInput: argv, env or cwd can't be passed.
        """
        identity, link = self._place()
        flags = (FLAG_TTY if tty else 0) | (FLAG_STDIN if stdin is not None else 0)
        frame = encode_exec(identity, argv, env or {}, cwd or "", flags, size, user)
        out, err = (Output(fd, piece, link.limits.output_window) for fd in (stdout, stderr))
        command = Command(
            identity, argv[0], stdin, out, err, cwd=cwd or "", user=user, tty=tty, limits=link.limits
        )  # fmt: skip
        return self._begin(command, link, frame)

    def read_file(self, path: str, stdout: int, piece: int = 4096) -> Command:
        """Begin to copy a regular file of the guest's to `stdout`. Its status: 0, or an errno of the guest's."""
        identity, link = self._place()
        frame = encode_file(identity, path)
        out = Output(stdout, piece, link.limits.output_window)
        return self._begin(Command(identity, path, None, out, Output(None), limits=link.limits), link, frame)

    def write_file(self, path: str, stdin: int, mode: int = 0o644) -> Command:
        """Begin to make a file of the guest's, or to replace its contents, with what `stdin` gives up to its end."""
        identity, link = self._place()
        frame = encode_file(identity, path, mode)
        return self._begin(Command(identity, path, stdin, Output(None), Output(None), limits=link.limits), link, frame)

    def _place(self) -> tuple[int, Link]:
        """An id that is free, and the channel to use."""
        if self.broken is not None:
            raise self.broken
        if self._next not in self._commands and self._next:
            identity = self._next
        else:
            identity = next((i for i in range(1, 256) if i not in self._commands), 0)
        if not identity:
            raise KvmkitError("255 commands run in this guest already; wait for one to end")
        return identity, self._fast if self._fast is not None and self.fast else self._serial

    def _begin(self, command: Command, link: Link, frame: bytes) -> Command:
        self._next = command.id % 255 + 1
        self._commands[command.id] = command
        link.out += frame
        return command

    def _link(self, command: Command) -> Link:
        """A command's channel; one that has gone took the command with it."""
        return self._fast if self._fast is not None and command.limits is VSOCK else self._serial

    def _say(self, command: Command, kind: Type, payload: bytes) -> None:
        if command.id in self._commands:
            self._link(command).out += encode(kind, command.id, payload)

    def wait(self, command: Command, timeout: float | None = None, escape: terminal.EscapeKey | None = None) -> int:
        """Until the command has ended and its output is written. Returns its status: 128 + n for a signal.

        Moves the data of all commands meanwhile. `escape`: the keys that, read from a terminal command's stdin,
        raise Escaped. CommandTimeout after `timeout` seconds.
        """
        end = _deadline(timeout)
        while not command.done:
            if command.error is not None:
                raise command.error
            if not self._turn_for(command, end, escape):
                raise self._overdue(command, timeout)
        if command.error is not None:
            raise command.error
        assert command.status is not None
        return command.status

    def run(
        self,
        argv: list[str],
        *,
        env: dict[str, str] | None = None,
        cwd: str | None = None,
        tty: bool = False,
        stdin: int | None = None,
        stdout: int | None = 1,
        stderr: int | None = 2,
        timeout: float | None = None,
        escape: terminal.EscapeKey | None = None,
        user: str = "",
    ) -> int:
        """`start` and `wait`. With `tty`, stdin's terminal is raw meanwhile, and its size is the command's.

        However this ends, the descriptors are not used afterwards.
        """
        if not tty:
            command = self.start(argv, env=env, cwd=cwd, stdin=stdin, stdout=stdout, stderr=stderr, user=user)
            try:
                return self.wait(command, timeout)
            finally:
                command.detach()
        screen = stdin if stdin is not None else stdout if stdout is not None else 0
        env = {"TERM": os.environ.get("TERM") or "vt100", **(env or {})}
        with terminal.raw(screen), terminal.on_resize(self._note_resize):
            command = self.start(
                argv, env=env, cwd=cwd, tty=True, stdin=stdin, stdout=stdout, stderr=stderr, size=terminal.size(screen),
                user=user,
            )  # fmt: skip
            end = _deadline(timeout)
            try:
                while not command.done:
                    if command.error is not None:
                        raise command.error
                    if self._resized:
                        self._resized = False
                        self.resize(command, *terminal.size(screen))
                    if not self._turn_for(command, end, escape, slice_seconds=0.5):
                        raise self._overdue(command, timeout)
            finally:
                command.detach()
        assert command.status is not None
        return command.status

    def signal(self, command: Command, number: int) -> None:
        """Send a signal to the command's process group; nothing happens when it has ended."""
        if command.status is None:
            self._say(command, Type.SIGNAL, bytes([number]))

    def resize(self, command: Command, rows: int, columns: int) -> None:
        if command.status is None:
            size = min(rows, 0xFFFF).to_bytes(2, "little") + min(columns, 0xFFFF).to_bytes(2, "little")
            self._say(command, Type.RESIZE, size)

    def ask_poweroff(self) -> None:
        """The same as `poweroff`, without waiting until the guest takes it."""
        if self.broken is None:
            self._serial.out += encode(Type.POWEROFF, 0, bytes([0]))

    def set_time(self, now_ns: int | None = None) -> None:
        """Have the guest set its clock to now (ns since 1970), or to `now_ns`: after a pause it is behind."""
        if self.broken is None and self.greeted:
            now = time.time_ns() if now_ns is None else now_ns
            self._serial.out += encode(Type.TIME, 0, now.to_bytes(8, "little"))

    def add_entropy(self, data: bytes | None = None) -> None:
        """Give the guest randomness (up to 512 bytes) of its own: after a fork, two have the same."""
        if self.broken is None and self.greeted:
            self._serial.out += encode(Type.ENTROPY, 0, (os.urandom(64) if data is None else data)[:512])

    def grow_root(self, size: int) -> None:
        """The disk of the guest's layer has `size` bytes now: have its file system fill it."""
        if self.broken is None and self.greeted:
            self._serial.out += encode(Type.GROW, 0, size.to_bytes(8, "little"))

    def poweroff(self, *, reboot: bool = False) -> None:
        """Ask the guest to sync and power off (or restart). Returns when it is asked: the machine tells the rest."""
        self._serial.out += encode(Type.POWEROFF, 0, bytes([reboot]))
        end = _deadline(5)
        self._flush()
        while self._serial.out:  # and no longer: what comes next may be the HELLO of the next boot, for the next client
            if not self._turn(end):
                raise AgentGone("the guest's agent does not take the request to power off")

    # ---- the loop ----

    def _note_resize(self) -> None:
        self._resized = True

    def _overdue(self, command: Command, timeout: float | None) -> CommandTimeout:
        self.signal(command, 9)
        self._flush()
        command.detach()
        return CommandTimeout(f"{command.name}: did not end within {timeout or 0:g} s")

    def _turn_for(
        self,
        command: Command,
        end: float | None,
        escape: terminal.EscapeKey | None = None,
        slice_seconds: float | None = None,
    ) -> bool:
        """`_turn`, for a command that may have ended just before the guest did: then its status counts."""
        try:
            return self._turn(end, escape, slice_seconds)
        except (AgentGone, Woken):
            self._write_what_came()
            if command.done:
                return True
            raise

    def _turn(
        self, end: float | None, escape: terminal.EscapeKey | None = None, slice_seconds: float | None = None
    ) -> bool:
        """Wait for something to do and do it. False: `end` (of the monotonic clock) has come."""
        left = None if end is None else end - time.monotonic()
        if left is not None and left <= 0:
            return False
        waits = [left, slice_seconds]
        others: Mapping[int, int] = {}
        if self.companion is not None:
            others = self.companion.interest()
            waits.append(None if self._again is None else max(self._again - time.monotonic(), 0))
        wait = min((each for each in waits if each is not None), default=None)
        self._flush()
        readers, writers = self._wanted()
        self._watch(readers, writers, others)
        ready = self._poll.poll(None if wait is None else wait * 1000)
        try:
            return self._handle_ready(ready, readers, writers, escape)
        finally:
            if self.companion is not None:
                self._again = self.companion.after()

    def _handle_ready(
        self,
        ready: list[tuple[int, int]],
        readers: dict[int, Command],
        writers: dict[int, tuple[Command, int]],
        escape: terminal.EscapeKey | None,
    ) -> bool:
        channel = fast = 0
        woken = False
        link = self._fast
        for fd, events in ready:
            if fd == self._serial.fd:
                channel = events
            elif link is not None and fd == link.fd:
                fast = events
            elif fd == self._wake:
                woken = True
            elif fd in writers or fd in readers:
                # A companion that was served before may have detached a command.
                if events & ~select.POLLIN and (writer := writers.get(fd)) and writer[0].outputs[writer[1]].fd == fd:
                    self._write_output(*writer)
                if events & ~select.POLLOUT and (reader := readers.get(fd)) and reader.stdin == fd:
                    self._read_input(reader, escape)
            elif self.companion is not None:
                self.companion.ready(fd, events)
        if woken:
            # What the guest said before it ended still counts; a guest that never stops talking does not.
            self._after_wake += 1
            if self.broken or self._after_wake > _TURNS_AFTER_WAKE or not self._receive_all():
                raise Woken("the machine has ended")
            return True
        if fast & ~select.POLLOUT and link is not None and link is self._fast:
            self._receive_fast(link)
        if (
            channel & ~select.POLLOUT
            and not self._receive(self._serial)
            and channel & (select.POLLHUP | select.POLLERR)
        ):
            raise AgentGone("the guest's agent has gone")
        return True

    def _wanted(self) -> tuple[dict[int, Command], dict[int, tuple[Command, int]]]:
        """Whose stdin to read and whose output to write, by descriptor; of those that share one, the first."""
        readers: dict[int, Command] = {}
        writers: dict[int, tuple[Command, int]] = {}
        flight = len(self._serial.out)
        for command in self._commands.values():
            if command.limits is SERIAL:
                flight += SERIAL.stdin_window - command.window
        for command in self._commands.values():
            free = flight < _IN_FLIGHT_MAX if command.limits is SERIAL else True
            if command.stdin is not None and command.window and free:
                readers.setdefault(command.stdin, command)
            for stream, output in command.outputs.items():
                if output.pending and output.fd is not None:
                    writers.setdefault(output.fd, (command, stream))
        return readers, writers

    def _watch(self, readers: Iterable[int], writers: Iterable[int], others: Mapping[int, int]) -> None:
        """Make the poll set what is wanted; mostly it is already, and a turn may carry but one byte."""
        interest = dict(others)
        if self.broken is None:
            for link in (self._serial, self._fast):
                if link is not None:
                    interest[link.fd] = select.POLLIN | (select.POLLOUT if link.out else 0)
        if self._wake is not None:
            interest[self._wake] = select.POLLIN
        for fd in readers:
            interest[fd] = select.POLLIN
        for fd in writers:
            interest[fd] = interest.get(fd, 0) | select.POLLOUT
        if interest == self._watched:
            return
        for fd in self._watched.keys() - interest.keys():
            self._poll.unregister(fd)
        for fd, events in interest.items():
            if self._watched.get(fd) != events:
                self._poll.register(fd, events)
        self._watched = interest

    def _flush(self) -> None:
        self._send(self._serial)
        if self._fast is not None:
            try:
                self._send(self._fast)
            except AgentGone as gone:
                self._detach(gone)

    def _send(self, link: Link) -> None:
        if not link.out:
            return
        try:
            done = os.write(link.fd, link.out)
        except BlockingIOError:
            return
        except OSError as error:
            raise AgentGone(f"the guest's agent has gone: {error.strerror}") from None
        del link.out[:done]

    def _receive_all(self) -> bool:
        """Take what the guest sent by any channel; False when there is nothing."""
        link = self._fast
        return (link is not None and self._receive_fast(link)) | self._receive(self._serial)

    def _receive_fast(self, link: Link) -> bool:
        try:
            return self._receive(link)
        except (AgentGone, ProtocolError) as error:  # the serial port is there still
            self._detach(error)
            return False

    def _receive(self, link: Link) -> bool:
        try:
            data = os.read(link.fd, _READ_MAX)
        except BlockingIOError:
            return False
        except OSError as error:
            raise AgentGone(f"the guest's agent has gone: {error.strerror}") from None
        if not data:
            raise AgentGone("the guest's agent has gone")
        if link is self._serial:
            self.before_reading()
        for frame in link.decoder.feed(data):
            self._handle(link, frame)
        return True

    def _handle(self, link: Link, frame: Frame) -> None:
        if frame.type is Type.HELLO:
            if (
                link is self._serial
                and self._commands
                and any(command.pid is not None for command in self._commands.values())
            ):
                self._fail_all(AgentGone("the guest restarted"))
            return
        command = self._commands.get(frame.id)
        if command is None or command.limits is not link.limits:
            raise ProtocolError(f"the guest's agent sent {frame.type.name} for command {frame.id}, which does not run")
        if command.status is not None and frame.type not in (Type.CREDIT, Type.CLOSE):  # these may have crossed
            raise ProtocolError(f"the guest's agent sent {frame.type.name} for command {frame.id}, which has ended")
        payload = frame.payload
        match frame.type:
            case Type.STDOUT | Type.STDERR:
                stream = frame.type - Type.STDOUT + 1
                command.outputs[stream].receive(payload)
                self._grant(command, stream)
            case Type.STARTED:
                command.pid = int.from_bytes(payload, "little")
            case Type.CREDIT:
                command.credited(int.from_bytes(payload[1:], "little"))
            case Type.CLOSE:
                command.stdin = None
            case Type.EXIT:
                command.exited(payload[0], payload[1])
            case Type.ERROR:
                command.failed(payload[0], payload[1])
        if command.done:
            self._commands.pop(frame.id, None)

    def _grant(self, command: Command, stream: int) -> None:
        credit = command.outputs[stream].credit()
        if credit and command.status is None:
            self._say(command, Type.CREDIT, bytes([stream]) + credit.to_bytes(4, "little"))

    def _write_output(self, command: Command, stream: int) -> None:
        try:
            goes_on = command.outputs[stream].write()
        except KvmkitError as error:
            command.outputs[stream].discard()
            command.error = command.error or error
            goes_on = False
        if not goes_on and command.status is None:
            self._say(command, Type.CLOSE, bytes([stream]))
        self._grant(command, stream)
        if command.done:
            self._commands.pop(command.id, None)

    def _write_what_came(self) -> None:
        """At the end of the conversation: hand over the output that is here, to readers that take it."""
        for command in list(self._commands.values()):
            for output in command.outputs.values():
                while output.pending and output.fd is not None:
                    poll = select.poll()
                    poll.register(output.fd, select.POLLOUT)
                    if not poll.poll(1000) or not output.write():
                        output.discard()

    def _read_input(self, command: Command, escape: terminal.EscapeKey | None) -> None:
        assert command.stdin is not None
        try:
            data = os.read(command.stdin, min(command.limits.data, command.window))
        except BlockingIOError:
            return
        except OSError:  # a terminal that hung up
            data = b""
        if escape is not None and command.tty and data:
            data = escape.feed(data)
            if escape.pressed:
                raise Escaped("left by the escape key")
            if not data:  # half of it; empty data would mean the end of the input
                return
        command.window -= len(data)
        self._say(command, Type.STDIN, data)
        if not data:
            command.stdin = None


def _deadline(timeout: float | None) -> float | None:
    return None if timeout is None else time.monotonic() + timeout


def _nothing() -> None:
    """Nobody wants to know."""
