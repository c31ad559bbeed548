"""`kvmkit` as a user calls it: a process of its own, of which nothing may be left."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import kvmkit as package

SOURCE = Path(package.__file__).parent.parent
COMMAND = [sys.executable, "-m", "kvmkit"]

Done = subprocess.CompletedProcess[str]


def environment() -> dict[str, str]:
    return {**os.environ, "PYTHONPATH": str(SOURCE), "PYTHONDONTWRITEBYTECODE": "1"}


def left_of(group: int) -> bool:
    """Whether a process of that group is still there a second later."""
    end = time.monotonic() + 1
    while time.monotonic() < end:
        try:
            os.killpg(group, 0)
        except ProcessLookupError:
            return False
        time.sleep(0.02)
    os.killpg(group, signal.SIGKILL)
    return True


def call(*words: str, prefix: tuple[str, ...] = (), timeout: float = 100, **options: object) -> Done:
    """Run `kvmkit WORDS` to its end in a session of its own, and see that no process of it is left."""
    given: dict = {"stdin": subprocess.DEVNULL, "env": environment(), **options}
    if "input" in given:
        del given["stdin"]
    text = given.pop("input", None)
    if text is not None:
        given["stdin"] = subprocess.PIPE
    process = subprocess.Popen(
        [*prefix, *COMMAND, *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        **given,
    )
    try:
        out, err = process.communicate(text, timeout)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        raise
    assert not left_of(process.pid), "a process was left behind"
    return subprocess.CompletedProcess(words, process.returncode, out, err)


def is_one_line(done: Done, status: int = 2) -> bool:
    """One line on stderr that says something, nothing on stdout, and that status."""
    assert done.returncode == status, done
    assert done.stdout == "", done
    assert done.stderr.startswith("kvmkit: "), done
    assert done.stderr.count("\n") == 1, done
    assert done.stderr.endswith("\n"), done
    assert "Traceback" not in done.stderr, done
    return True
