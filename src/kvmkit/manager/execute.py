"""Run a command in the guest of a VM that runs, with descriptors of this process as its streams."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.manager import control
from kvmkit.manager.wire import Refused

if TYPE_CHECKING:
    from kvmkit.manager.home import Home


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
    """Run it to its end; returns its status, as a shell has it. The descriptors stay the caller's.

    A guest that is starting is waited for. Raises NotRunning, Refused (also when `timeout` seconds are over, with
    exit status 124), and BadInput for what no command can be given.
    """
    env = dict(env or {})
    if not argv:
        raise BadInput("the command to run in the guest is empty")
    if any("\udc80" <= c <= "\udcff" for text in [*argv, *env.values(), cwd, user] for c in text):
        raise BadInput("arguments of a guest command must be UTF-8")
    streams = [*([stdin] if stdin is not None else []), stdout, stderr]
    connection = control.request(
        home, "exec", streams, argv=list(argv), env=env, cwd=cwd, user=user, stdin=stdin is not None, timeout=timeout
    )
    try:
        answer = connection.receive()
    except Refused as refused:
        from kvmkit.manager import foreign

        return foreign.execute(
            home, refused, argv, stdin=stdin, stdout=stdout, stderr=stderr, env=env, cwd=cwd, user=user, timeout=timeout
        )
    finally:
        connection.close()
    if answer is None:
        raise KvmkitError(f"the VM's process ended before {argv[0]} did")
    return int(answer["exit"])


def said(
    home: Home, argv: Sequence[str], *, most: int = 8192, both: bool = False, timeout: float | None = None
) -> tuple[int, bytes]:
    """A command's status, and the first `most` bytes (up to a pipe's 64 KiB) that it writes. `both`: errors, too."""
    reading, writing = os.pipe2(os.O_CLOEXEC | os.O_NONBLOCK)
    os.set_blocking(writing, True)
    try:
        status = execute(home, argv, stdout=writing, stderr=writing if both else 2, timeout=timeout)
        try:
            return status, os.read(reading, most)
        except BlockingIOError:
            return status, b""
    finally:
        os.close(reading)
        os.close(writing)
