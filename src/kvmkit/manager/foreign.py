"""Guests without kvmkit's agent: a command in them by qemu-ga, where that is in them and has its port."""

from __future__ import annotations

import os
import sys
import time
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.guest.qga import PORT, SECONDS, GuestAgentError, GuestAgentTimeout, QemuGuestAgent
from kvmkit.manager.sockets import port_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvmkit.manager.home import Home
    from kvmkit.manager.wire import Refused

INPUT_MAX = 8 << 20
START_SECONDS = 180.0
QUIET_SECONDS = 2.0
"""After which somebody at a terminal is told what is waited for."""


def connect(home: Home, timeout: float | None = None) -> QemuGuestAgent:
    """qemu-ga of a VM that runs; a guest that is starting is waited for.

    KvmkitError: it has no port for it, is paused, or nobody answers. GuestAgentTimeout: not within `timeout` seconds.
    """
    path = _port(home)
    began = time.monotonic()
    end = began + (START_SECONDS if timeout is None else min(timeout, START_SECONDS))
    told = not sys.stderr.isatty()
    while True:
        if home.load().state == "paused":
            raise KvmkitError(f"{home.name} is paused: kvmkit resume {home.name}")
        try:
            return QemuGuestAgent(path, timeout=max(0.1, min(SECONDS, end - time.monotonic())))
        except GuestAgentError as error:
            now = time.monotonic()
            if now >= end and timeout is not None and timeout <= START_SECONDS:
                raise GuestAgentTimeout(f"{home.name}: qemu-ga did not answer within {timeout:g} s") from None
            if now >= end or not home.running():
                raise KvmkitError(f"{home.name}: its guest has no agent of kvmkit's, and {error}") from None
        if not told and now - began >= QUIET_SECONDS:
            told = True
            print(f"kvmkit: waiting for qemu-ga in {home.name}'s guest (Ctrl-C ends that)", file=sys.stderr)
        time.sleep(min(0.5, max(0.0, end - now)))


def _port(home: Home) -> str:
    try:
        path = port_path(home, PORT)
    except BadInput:
        path = ""
    if not path or not os.path.exists(path):
        raise KvmkitError(
            f"{home.name}: its guest has no agent of kvmkit's, nor a port for qemu-ga: start it with "
            f"--console-port {PORT}, or use `kvmkit ssh {home.name}`"
        )
    return path


def execute(
    home: Home,
    refused: Refused,
    argv: Sequence[str],
    *,
    stdin: int | None = None,
    stdout: int = 1,
    stderr: int = 2,
    env: Mapping[str, str] | None = None,
    cwd: str = "",
    user: str = "",
    timeout: float | None = None,
) -> int:
    """Run by it what kvmkit's agent `refused`, to its end; its output is written then. Returns its status.

    Raises `refused` where the guest has kvmkit's agent, and BadInput for more than qemu-ga can do.
    """
    if home.spec().with_agent:
        raise refused
    words = ["/bin/sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", cwd or "/", *argv]
    if user:
        words = ["/sbin/runuser", "-u", user, "--", *words]
    data = _all(stdin) if stdin is not None else b""
    began = time.monotonic()
    with connect(home, timeout) as agent:
        left = None if timeout is None else max(0.1, timeout - (time.monotonic() - began))
        done = agent.execute(words, input=data, env=env or {}, timeout=left)
    for fd, text in (stdout, done.stdout), (stderr, done.stderr):
        view = memoryview(text)
        while view:
            view = view[os.write(fd, view) :]
    return done.status


def _all(fd: int) -> bytes:
    data = b""
    while piece := os.read(fd, 1 << 20):
        data += piece
        if len(data) > INPUT_MAX:
            raise BadInput(f"qemu-ga takes no more than {INPUT_MAX >> 20} MiB of input: use `kvmkit ssh`")
    return data


def power_off(path: str) -> None:
    """Ask for it, where qemu-ga answers at that socket; nothing happens where it does not."""
    try:
        with QemuGuestAgent(path, timeout=5.0) as agent:
            agent.shutdown()
    except KvmkitError:
        pass
