"""The QEMU guest agent's protocol, for distribution guests: qemu-ga, at a port named org.qemu.guest_agent.0.

    with QemuGuestAgent("/path/of/the/port's/socket") as agent:
        print(agent.ping(), agent.execute(["uname", "-a"]).stdout)

JSON, a line each way. The guest is hostile until checked: sizes and times are bounded, and what is no answer raises
GuestAgentError in one line. Source: QEMU Guest Agent Protocol Reference.
"""

from __future__ import annotations

import base64
import binascii
import json
import os
import socket
import time
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Any, NamedTuple

from kvmkit.errors import BadInput, KvmkitError

PORT = "org.qemu.guest_agent.0"
LONGEST = 48 << 20
"""Bytes of one answer: qemu-ga keeps up to 16 MiB of each of a command's outputs, in base64."""
SECONDS = 10.0
POLL_SECONDS = 0.02
DELIMITER = b"\xff"


class GuestAgentError(KvmkitError):
    """The agent does not answer, refuses, or says what it never should."""


class GuestAgentTimeout(GuestAgentError):
    """The command ran longer than it may."""

    exit_status = 124


class Executed(NamedTuple):
    """A command that has ended: its status as a shell has it, and all it wrote (qemu-ga keeps 16 MiB of each)."""

    status: int
    stdout: bytes
    stderr: bytes


class QemuGuestAgent:
    """One connection; `timeout`: seconds for each answer. Not for two threads at once."""

    def __init__(self, path: str | os.PathLike[str], timeout: float = SECONDS) -> None:
        self._timeout = timeout
        self._buffer = bytearray()
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
        try:
            self._socket.connect(os.fspath(path))
            self._synchronize()
        except OSError as error:
            self._socket.close()
            raise GuestAgentError(f"the guest agent's port can't be reached: {error.strerror or error}") from None
        except BaseException:
            self._socket.close()
            raise

    def _synchronize(self) -> None:
        """Past what an earlier user left: the delimiter has both sides forget half a line."""
        number = int.from_bytes(os.urandom(4), "little")
        self._send(DELIMITER + _line("guest-sync-delimited", {"id": number}))
        end = time.monotonic() + self._timeout
        while True:
            self._read_until(DELIMITER, end)
            if self._answer(end) == number:
                return

    # What it can do.

    def call(self, name: str, arguments: Mapping[str, Any] | None = None, timeout: float | None = None) -> Any:
        """One command of the agent's, such as "guest-info"; what it returns. GuestAgentError when it refuses."""
        self._send(_line(name, arguments))
        return self._answer(time.monotonic() + (self._timeout if timeout is None else timeout))

    def ping(self) -> bool:
        """True; GuestAgentError when nobody answers."""
        self.call("guest-ping")
        return True

    def version(self) -> str:
        info = self.call("guest-info")
        return _shown(info.get("version", "")) if isinstance(info, dict) else ""

    def execute(
        self,
        argv: Sequence[str],
        *,
        input: bytes = b"",
        env: Mapping[str, str] | None = None,
        timeout: float | None = None,
    ) -> Executed:
        """Run a command to its end. GuestAgentTimeout after `timeout` seconds; qemu-ga can't end it then."""
        if not argv or not argv[0]:
            raise BadInput("the command to run in the guest is empty")
        arguments: dict[str, Any] = {"path": argv[0], "arg": list(argv[1:]), "capture-output": True}
        if env:
            arguments["env"] = [f"{name}={value}" for name, value in env.items()]
        if input:
            arguments["input-data"] = base64.b64encode(input).decode()
        started = self.call("guest-exec", arguments)
        pid = started.get("pid") if isinstance(started, dict) else None
        if not isinstance(pid, int):
            raise GuestAgentError("the guest agent started a command and did not say which")
        end = None if timeout is None else time.monotonic() + timeout
        wait = POLL_SECONDS / 4
        while True:
            state = self.call("guest-exec-status", {"pid": pid})
            if not isinstance(state, dict):
                raise GuestAgentError("the guest agent did not say how its command does")
            if state.get("exited"):
                return _executed(state)
            if end is not None and time.monotonic() >= end:
                raise GuestAgentTimeout(f"{argv[0]}: did not end within {timeout:g} s")
            time.sleep(wait)
            wait = min(2 * wait, 10 * POLL_SECONDS)

    def shutdown(self, mode: str = "powerdown") -> None:
        """Ask for "powerdown", "reboot" or "halt". There is no answer when it is done."""
        if mode not in ("powerdown", "reboot", "halt"):
            raise BadInput(f"a guest's shutdown is powerdown, reboot or halt, not {mode}")
        self._send(_line("guest-shutdown", {"mode": mode}))

    def set_time(self, now_ns: int | None = None) -> None:
        """Set the guest's clock to now, or to `now_ns` since 1970."""
        self.call("guest-set-time", {"time": time.time_ns() if now_ns is None else now_ns})

    # Lines.

    def _send(self, data: bytes) -> None:
        self._socket.settimeout(self._timeout)
        try:
            self._socket.sendall(data)
        except TimeoutError:
            raise GuestAgentError("the guest agent does not read what it is sent") from None
        except OSError as error:
            raise GuestAgentError(f"the guest agent's port is closed: {error.strerror}") from None

    def _read_until(self, mark: bytes, end: float) -> bytes:
        """What comes before `mark`, which is taken too."""
        searched = 0
        while (at := self._buffer.find(mark, searched)) < 0:
            searched = len(self._buffer)
            if searched > LONGEST:
                raise GuestAgentError("the guest agent sent more than an answer can be")
            left = end - time.monotonic()
            self._socket.settimeout(max(left, 0.001))
            try:
                data = self._socket.recv(1 << 16) if left > 0 else b""
            except (TimeoutError, BlockingIOError):
                data = b""
                left = 0
            except OSError as error:
                raise GuestAgentError(f"the guest agent's port is closed: {error.strerror}") from None
            if not data:
                why = "does not answer: is qemu-ga running in the guest?" if left <= 0 else "has gone"
                raise GuestAgentError(f"the guest agent {why}")
            self._buffer += data
        line = bytes(self._buffer[:at])
        del self._buffer[: at + len(mark)]
        return line

    def _answer(self, end: float) -> Any:
        text = self._read_until(b"\n", end)
        try:
            answer = json.loads(text)
        except (ValueError, RecursionError):
            raise GuestAgentError("the guest agent sent what is no answer") from None
        if isinstance(answer, dict) and isinstance(error := answer.get("error"), dict):
            raise GuestAgentError(f"the guest agent refuses: {_shown(error.get('desc', 'no reason given'))}")
        if not isinstance(answer, dict) or "return" not in answer:
            raise GuestAgentError("the guest agent sent what is no answer")
        return answer["return"]

    def close(self) -> None:
        self._socket.close()

    def __enter__(self) -> QemuGuestAgent:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()


def _shown(said: Any) -> str:
    """What the guest says, for a terminal: in one line, and nothing that the terminal would obey."""
    return "".join(one if one.isprintable() else "?" for one in str(said)[:200])


def _line(name: str, arguments: Mapping[str, Any] | None) -> bytes:
    message: dict[str, Any] = {"execute": name}
    if arguments:
        message["arguments"] = dict(arguments)
    return json.dumps(message).encode() + b"\n"


def _executed(state: Mapping[str, Any]) -> Executed:
    code, signal = state.get("exitcode"), state.get("signal")
    status = 128 + signal if isinstance(signal, int) and signal else code if isinstance(code, int) else 1
    return Executed(status & 0xFF, _decoded(state.get("out-data", "")), _decoded(state.get("err-data", "")))


def _decoded(text: Any) -> bytes:
    try:
        return base64.b64decode(text, validate=True)
    except (TypeError, ValueError, binascii.Error):
        raise GuestAgentError("the guest agent sent output that is no base64") from None
