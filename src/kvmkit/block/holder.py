"""Who has a file locked, for the user who is refused it. Source: proc_locks(5)."""

from __future__ import annotations

import os
import re

_LOCKED = re.compile(r"another process using the image \[(.*)\]\?")


def holder(fd: int) -> str:
    """ "the VM web", "process 812 (qemu-img)", or "another VM or program" where that can't be told."""
    found = os.fstat(fd)
    key = f"{os.major(found.st_dev):02x}:{os.minor(found.st_dev):02x}:{found.st_ino}"
    try:
        with open("/proc/locks", encoding="ascii") as file:
            rows = [line.split() for line in file]
    except OSError:
        rows = []
    for row in rows:
        # 1: FLOCK  ADVISORY  WRITE 812 08:01:1234 0 EOF; a waiting one has "->" in its second place
        if "->" not in row and len(row) > 5 and row[5] == key and row[4].isdigit() and int(row[4]) != os.getpid():
            return _named(int(row[4]))
    return "another VM or program"


def locked_image(said: str) -> str:
    """The image that one of QEMU's programs says it can't lock, as another has it; "" where it says something else."""
    found = _LOCKED.search(said)
    return found[1] if found is not None else ""


def opener(path: str) -> str:
    """The same for a file that a program locks without a trace in /proc/locks, as QEMU's do: who has it open."""
    try:
        found = os.stat(path)
    except OSError:
        return "another VM or program"
    for pid in (int(entry) for entry in os.listdir("/proc") if entry.isdigit()):
        try:
            if pid != os.getpid() and any(os.path.samestat(found, os.stat(entry.path)) for entry in _entries(pid)):
                return _served_by(pid)
        except OSError:
            continue  # it has ended, or is another user's
    return "another VM or program"


def _entries(pid: int) -> list[os.DirEntry[str]]:
    return [entry for entry in os.scandir(f"/proc/{pid}/fd") if os.path.exists(entry.path)]


def _served_by(pid: int) -> str:
    """By name; a storage daemon's is its VM's, whose process started it."""
    with open(f"/proc/{pid}/stat", encoding="utf-8", errors="replace") as file:
        parent = int(file.read().rpartition(")")[2].split()[1])
    above = _named(parent)
    return above if above.startswith("the VM ") else _named(pid)


def _named(pid: int) -> str:
    """By the directory that a VM's process has open, whatever it is called now."""
    try:
        for entry in os.scandir(f"/proc/{pid}/fd"):
            parts = os.readlink(entry.path).split("/")
            if parts[-1] == "lock" and parts[-3:-2] == ["machines"]:
                return f"the VM {parts[-2]}"
        with open(f"/proc/{pid}/comm", encoding="utf-8", errors="replace") as file:
            return f"process {pid} ({file.read().strip()})"
    except OSError:
        return f"process {pid}"
