"""What a client may say on a control socket, as the VM's process checks it. See wire.py for the protocol."""

from __future__ import annotations

import msgspec

from kvmkit.machine.spec import ScsiDisk


class Request(msgspec.Struct, kw_only=True, omit_defaults=True):
    """The first line of a connection. What a verb does not use it ignores."""

    kvmkit: int
    verb: str
    argv: list[str] = []
    env: dict[str, str] = {}
    cwd: str = ""
    user: str = ""
    tty: bool = False
    stdin: bool = False
    """The first descriptor is the command's standard input; then come its output and its error output."""
    size: tuple[int, int] = (24, 80)
    timeout: float | None = None
    every: float | None = None
    changes: list[tuple[str, str]] = []
    """For `set`: what, and its new value as the user wrote it."""
    events: list[tuple[int, int, int]] = []
    """For `input`, with the device in `device`: type, code and value of each."""
    device: str = ""
    unit: ScsiDisk | None = None
    """For `attach`."""
    target: int = -1
    """For `detach`."""


class More(msgspec.Struct, kw_only=True, omit_defaults=True):
    """A later line of the client's."""

    signal: int = 0
    resize: tuple[int, int] | None = None
