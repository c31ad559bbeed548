"""`kvmkit` as a user calls it: a process of its own, of which nothing may be left."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest

import kvmkit as package

SOURCE = Path(package.__file__).parent.parent
COMMAND = [sys.executable, "-m", "kvmkit"]
NOBODY = 65534

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


@pytest.fixture
def kvmkit() -> Callable[..., Done]:
    return call


@pytest.fixture
def as_nobody(tmp_path: Path) -> Callable[..., Done]:
    """`kvmkit` as an ordinary user with a directory of its own; skipped where that can't be had."""
    if os.getuid() != 0:
        pytest.skip("is not root, so it is an ordinary user already")
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux)")
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    probe = subprocess.run([*prefix, *COMMAND, "--version"], env=environment(), capture_output=True)
    if probe.returncode:
        pytest.skip("an ordinary user can't read this Python or this checkout")
    home = tmp_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)
    # pytest's own directory is this user's alone; nobody has to pass through it.
    for directory in (tmp_path, *tmp_path.parents):
        if str(directory).startswith("/tmp/pytest"):
            directory.chmod(directory.stat().st_mode | 0o011)

    def run(*words: str, **options: object) -> Done:
        env = {**environment(), "KVMKIT_HOME": str(home), "HOME": "/nonexistent"}
        return call(*words, prefix=prefix, env=env, cwd="/", **options)

    return run
