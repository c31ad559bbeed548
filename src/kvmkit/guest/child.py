"""Programs that write below a directory of ours, and start others that do."""

from __future__ import annotations

import os
import signal
import subprocess
import time
from contextlib import suppress
from typing import Any

GONE_SECONDS = 5.0


def end_group(process: subprocess.Popen[Any]) -> None:
    """End what leads a session of its own, with all that it has started: what they wrote to can then be removed."""
    with suppress(OSError):
        os.killpg(process.pid, signal.SIGKILL)
    process.wait()
    end = time.monotonic() + GONE_SECONDS
    while _runs(process.pid) and time.monotonic() < end:
        time.sleep(0.005)


def _runs(group: int) -> bool:
    """Whether a process of that group is left, but for those that only wait to be reaped. Source: proc(5)."""
    for entry in os.listdir("/proc"):
        if entry.isdigit():
            with suppress(OSError), open(f"/proc/{entry}/stat", "rb") as file:
                state, _parent, its = file.read().rpartition(b")")[2].split()[:3]
                if int(its) == group and state not in (b"Z", b"X"):
                    return True
    return False
