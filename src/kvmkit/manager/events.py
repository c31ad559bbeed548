"""What happened to VMs: one JSON object a line, in one file for all VMs of this user, bounded."""

from __future__ import annotations

import os
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import msgspec

from kvmkit.manager import files
from kvmkit.paths import data_dir

LARGEST = 1 << 20
"""Bytes after which the file becomes the older one of two."""
LOOK_SECONDS = 0.1


class Event(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`time` in seconds of the epoch."""

    time: float
    vm: str
    event: str
    detail: str = ""


def path() -> Path:
    return data_dir() / "events.jsonl"


def note(vm: str, event: str, detail: str = "") -> None:
    """Append an event. A line is written by one call, so that those of several processes don't mix."""
    line = msgspec.json.encode(Event(time=time.time(), vm=vm, event=event, detail=files.text(detail))) + b"\n"
    try:
        file = path()
        fd = os.open(file, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o600)
        try:
            os.write(fd, line)
            full = os.fstat(fd).st_size > LARGEST
        finally:
            os.close(fd)
        if full:
            os.replace(file, file.with_suffix(".jsonl.1"))
    except OSError:
        pass  # a full disk: what happened is not undone because it can't be noted


def past() -> Iterator[Event]:
    """The events that are kept, oldest first."""
    for file in (path().with_suffix(".jsonl.1"), path()):
        try:
            data = file.read_bytes()
        except OSError:
            continue
        yield from _decode(data)


def follow(between: Callable[[], Any]) -> Iterator[Event]:
    """Events from now on, without end; `between` is called while waiting for one."""
    file = None
    try:
        file = _open()
        if file is not None:
            file.seek(0, os.SEEK_END)
        rest = b""
        while True:
            data = file.read() if file is not None else b""
            if data:
                lines, end, rest = (rest + data).rpartition(b"\n")
                yield from _decode(lines + end)
                continue
            if file is None or not _is_current(file):
                if file is not None:
                    file.close()
                file, rest = _open(), b""
                if file is not None:
                    continue
            between()
            time.sleep(LOOK_SECONDS)
    finally:
        if file is not None:
            file.close()


def _open() -> Any:
    try:
        return open(path(), "rb", buffering=0)
    except OSError:
        return None


def _is_current(file: Any) -> bool:
    try:
        return os.path.samestat(os.stat(path()), os.fstat(file.fileno()))
    except OSError:
        return False


def _decode(data: bytes) -> Iterator[Event]:
    for line in data.splitlines():
        try:
            yield msgspec.json.decode(line, type=Event)
        except msgspec.DecodeError:
            continue  # the end of a line that a full disk cut
