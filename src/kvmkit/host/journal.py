"""What kvmkit changed on this host, so that it can be undone: one JSON file, rewritten whole at every step."""

from __future__ import annotations

import base64
import fcntl
import json
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from kvmkit.errors import HostError
from kvmkit.host.system import Host

DIRECTORY = "/var/lib/kvmkit"
FILE = f"{DIRECTORY}/host.json"

Record = dict[str, Any]


def pack(content: bytes | None) -> str | None:
    return None if content is None else base64.b64encode(content).decode()


def unpack(text: str | None) -> bytes | None:
    return None if text is None else base64.b64decode(text)


def replace_file(path: Path, content: bytes, mode: int, owner: tuple[int, int] | None = None) -> None:
    """Write beside `path`, sync, rename over it: a crash leaves the old file or the new one."""
    target = Path(os.path.realpath(path))
    temporary = target.with_name(f".{target.name}.kvmkit-{os.getpid()}")
    try:
        fd = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o600)
        try:
            view = memoryview(content)
            while view:
                view = view[os.write(fd, view) :]
            if owner is not None and os.geteuid() == 0:
                os.fchown(fd, *owner)
            os.fchmod(fd, mode)
            os.fsync(fd)
        finally:
            os.close(fd)
        os.replace(temporary, target)
    except OSError as error:
        try:
            temporary.unlink()
        except OSError:
            pass  # it was never made
        raise HostError(f"{path}: can't be written: {error.strerror}") from error


def _same(fd: int, path: Path) -> bool:
    try:
        return os.path.samestat(os.fstat(fd), path.stat())
    except FileNotFoundError:
        return False


@dataclass
class Entry:
    """One command's changes, oldest first. A record says how to undo one of them; its 'kind' is command, value,
    directory or file."""

    id: int
    topic: str
    action: str
    time: str
    records: list[Record] = field(default_factory=list)


class Journal:
    """The entries not undone yet, oldest first."""

    def __init__(self, host: Host) -> None:
        self.host = host
        self.path = host.path(FILE)
        self.entries: list[Entry] = []
        text = self.loaded = host.text(FILE)
        if text is None:
            if host.exists(FILE):
                raise HostError(f"{FILE}: may not be read; it says what kvmkit changed: sudo chmod a+r {FILE}")
            return
        try:
            self.entries = [Entry(**entry) for entry in json.loads(text)["entries"]]
        except (ValueError, TypeError, KeyError) as error:
            raise HostError(f"{self.path}: is damaged ({error}); move it away to start a new one") from error

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold off another kvmkit that changes the host."""
        directory = self.host.path(DIRECTORY)
        try:
            directory.mkdir(parents=True, exist_ok=True)
            fd = os.open(directory / "host.lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except OSError as error:
            raise HostError(f"{directory}: can't be used for the journal: {error.strerror}") from error
        try:
            try:
                fcntl.flock(fd, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                raise HostError("another kvmkit is changing this host; try again when it is done") from None
            if self.host.text(FILE) != self.loaded or not _same(fd, directory / "host.lock"):
                raise HostError("another kvmkit changed this host just now; try again")
            yield
            if not self.path.exists():  # all is undone, and so is this
                (directory / "host.lock").unlink()
                with suppress(OSError):
                    directory.rmdir()
        finally:
            os.close(fd)

    def begin(self, topic: str, action: str) -> Entry:
        id = max((entry.id for entry in self.entries), default=0) + 1
        entry = Entry(id, topic, action, time.strftime("%Y-%m-%dT%H:%M:%SZ", time.gmtime()))
        self.entries.append(entry)
        return entry

    def save(self) -> None:
        kept = [entry for entry in self.entries if entry.records]
        if not kept:
            self.path.unlink(missing_ok=True)
            return
        text = json.dumps({"entries": [vars(entry) for entry in kept]}, indent=1)
        replace_file(self.path, text.encode() + b"\n", 0o644)

    def drop(self, ids: list[int]) -> None:
        self.entries = [entry for entry in self.entries if entry.id not in ids]

    def of(self, topic: str, action: str | None = None) -> list[Entry]:
        """The entries about a topic; with `action` ('nested enable'), those of that command only."""
        return [entry for entry in self.entries if entry.topic == topic and action in (None, entry.action)]

    def wrote(self, path: str, content: bytes | None) -> bool:
        """Whether `content` is what kvmkit itself last left in the file `path`."""
        for entry in reversed(self.entries):
            for record in reversed(entry.records):
                if record["kind"] == "file" and record["path"] == path:
                    return unpack(record["after"]) == content
        return False
