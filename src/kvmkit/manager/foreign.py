"""Guests without kvmkit's agent: a command in them by qemu-ga, where that is in them and has its port."""

from __future__ import annotations

import os
import time
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.guest.qga import PORT, GuestAgentError, QemuGuestAgent
from kvmkit.manager import files, spec
from kvmkit.manager.home import SPEC
from kvmkit.manager.sockets import port_path

if TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from kvmkit.manager.home import Home

INPUT_MAX = 8 << 20
START_SECONDS = 300.0


def without_agent(home: Home) -> bool:
    return not spec.decode(files.read(home.directory, SPEC), str(home.path / SPEC)).with_agent


def connect(home: Home, seconds: float = START_SECONDS) -> QemuGuestAgent:
    """qemu-ga of a VM that runs; a guest that is starting is waited for. KvmkitError: it has no port for it."""
    try:
        path = port_path(home, PORT)
    except BadInput:
        raise KvmkitError(
            f"{home.name}: its guest has no agent of kvmkit's, nor a port for qemu-ga: start it with "
            f"--console-port {PORT}, or use `kvmkit ssh {home.name}`"
        ) from None
    end = time.monotonic() + seconds
    while True:
        try:
            return QemuGuestAgent(path)
        except GuestAgentError as error:
            if time.monotonic() >= end or not home.running():
                raise KvmkitError(f"{home.name}: its guest has no agent of kvmkit's, and {error}") from None
        time.sleep(0.5)


def execute(
    home: Home,
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
    """Run it to its end; its output is written then. Returns its status. BadInput: more than qemu-ga can do."""
    words = ["/bin/sh", "-c", 'cd "$1" && shift && exec "$@"', "sh", cwd or "/", *argv]
    if user:
        words = ["/sbin/runuser", "-u", user, "--", *words]
    data = _all(stdin) if stdin is not None else b""
    with connect(home) as agent:
        done = agent.execute(words, input=data, env=env or {}, timeout=timeout)
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
