"""Read a VM's logs, also while they grow."""

from __future__ import annotations

import os
import re
import time
from collections.abc import Iterator

from kvmkit.manager.console import OLDER
from kvmkit.manager.home import Home

LOOK_SECONDS = 0.05
_CONTROL = re.compile(rb"\x1b\[[0-9;]{0,20}m|[^\x20-\x7e\x80-\xff\n\t\r]")


def harmless(data: bytes) -> bytes:
    """What a terminal may be shown of what a guest said: colours, but no other control sequence."""
    return _CONTROL.sub(lambda match: match[0] if len(match[0]) > 1 else b"?", data)


def read(home: Home, name: str, *, follow: bool = False, lines: int | None = None) -> Iterator[bytes]:
    """The log, both of its files, oldest first; with `follow`, what is added until the VM has ended."""
    current = _open(home, name)
    older = _open(home, name + OLDER) if name + OLDER else None
    data = b""
    for file in (older, current):
        if file is not None:
            data += file.read()
    if older is not None:
        older.close()
    if lines is not None:
        data = b"".join(data.splitlines(keepends=True)[-lines:]) if lines > 0 else b""
    if data:
        yield data
    while follow:
        running = home.running()  # asked first: what it said before its end is read once more
        data = current.read() if current is not None else b""
        if data:
            yield data
            continue
        if not _is_current(home, name, current):
            if current is not None:
                if rest := current.read():
                    yield rest
                current.close()
            current = _open(home, name)
            if current is not None:
                continue
        if not running:
            break
        time.sleep(LOOK_SECONDS)
    if current is not None:
        current.close()


def _open(home: Home, name: str):  # type: ignore[no-untyped-def]  # what open() gives for these arguments
    try:
        return open(os.open(name, os.O_RDONLY | os.O_CLOEXEC, dir_fd=home.directory), "rb", buffering=0)
    except FileNotFoundError:
        return None


def _is_current(home: Home, name: str, file) -> bool:  # type: ignore[no-untyped-def]  # as above
    try:
        there = os.stat(name, dir_fd=home.directory)
    except FileNotFoundError:
        return file is None
    return file is not None and os.path.samestat(there, os.fstat(file.fileno()))
