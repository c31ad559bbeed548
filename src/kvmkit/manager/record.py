"""What a VM's process notes of itself, for others to read: state.json in the VM's directory."""

from __future__ import annotations

import os
import time

import msgspec

from kvmkit.manager import files
from kvmkit.manager.files import read, replace_or_use_spare

FILE = "state.json"
DIED = "died"
"""The reason of a VM whose process ended without a word."""


class Ended(msgspec.Struct, kw_only=True):
    """How a run ended. `status` is what `kvmkit wait` exits with; `at` is in seconds of the epoch."""

    reason: str
    status: int = 0
    detail: str = ""
    at: float = 0.0
    wanted: bool = True
    """The guest or the user asked for it."""


class Record(msgspec.Struct, kw_only=True, omit_defaults=True):
    """`state` is the last one noted: of a process that is gone, `Ended` counts, and without one it died."""

    version: int = 1
    state: str = "created"
    created: float = 0.0
    started: float = 0.0
    """Seconds of the epoch; 0: never."""
    pid: int = 0
    ticks: int = 0
    """When the process began, in clock ticks since the host's boot (/proc/PID/stat): a pid is used again, these not."""
    boot: str = ""
    """The host's boot id then."""
    engine: str = ""
    memory: int = 0
    """Bytes of guest RAM."""
    balloon: int = 0
    """Bytes of it that the guest has given back."""
    cpus: int = 0
    addresses: list[str] = []
    """Of its network cards, where they are known."""
    foreground: bool = False
    temporary: bool = False
    """The VM goes when it ends."""
    ended: Ended | None = None


def load(directory: int) -> Record:
    """The record in an open directory; an empty one where there is none that can be read."""
    try:
        return msgspec.json.decode(read(directory, FILE), type=Record)
    except (OSError, msgspec.DecodeError):
        return Record()


def store(directory: int, record: Record) -> None:
    replace_or_use_spare(directory, FILE, msgspec.json.encode(record))


def set_aside(directory: int) -> None:
    """Have its end be noted also when the disk is full by then."""
    files.set_aside(directory, FILE)


def begin(record: Record) -> None:
    """Note this process as the VM's, which is starting."""
    record.state = "starting"
    record.started = time.time()
    record.pid = os.getpid()
    record.ticks = process_ticks(record.pid)
    record.boot = boot_id()
    record.ended = None
    record.balloon = 0


def boot_id() -> str:
    try:
        with open("/proc/sys/kernel/random/boot_id", encoding="ascii") as file:
            return file.read().strip()
    except OSError:
        return ""


def process_ticks(pid: int) -> int:
    """The start of a process, in clock ticks since boot; 0 when there is no such process."""
    fields = process_stat(pid)
    return int(fields[19]) if fields else 0


def process_stat(pid: int) -> list[str]:
    """The fields of /proc/PID/stat after the command's name (the first is the state), or []. Source: proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return file.read().rpartition(b") ")[2].decode("ascii").split()
    except (OSError, ValueError):
        return []
