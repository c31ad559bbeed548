"""The ways to call kvmkit."""

from __future__ import annotations

import os
import shutil
import subprocess
from collections.abc import Callable
from pathlib import Path

import pytest
from calling import COMMAND, Done, call, environment

NOBODY = 65534


@pytest.fixture
def kvmkit() -> Callable[..., Done]:
    return call


@pytest.fixture
def as_nobody(open_path: Path) -> Callable[..., Done]:
    """`kvmkit` as an ordinary user with a directory of its own; skipped where that can't be had."""
    if os.getuid() != 0:
        pytest.skip("is not root, so it is an ordinary user already")
    if shutil.which("setpriv") is None:
        pytest.skip("needs setpriv (util-linux)")
    prefix = ("setpriv", f"--reuid={NOBODY}", f"--regid={NOBODY}", "--clear-groups")
    probe = subprocess.run([*prefix, *COMMAND, "--version"], env=environment(), capture_output=True)
    if probe.returncode:
        pytest.skip("an ordinary user can't read this Python or this checkout")
    home = open_path / "home"
    home.mkdir()
    os.chown(home, NOBODY, NOBODY)

    def run(*words: str, **options: object) -> Done:
        env = {**environment(), "KVMKIT_HOME": str(home), "HOME": "/nonexistent"}
        return call(*words, prefix=prefix, env=env, cwd="/", **options)

    return run
