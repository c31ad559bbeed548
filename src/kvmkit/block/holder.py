"""Who has a file locked, for the user who is refused it. Source: proc_locks(5)."""

from __future__ import annotations

import os


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
