"""What a signal does to a command that is at work."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

MODULE = """
import os, signal
os.kill(os.getpid(), signal.{name})
imported = True
"""
MAIN = """
import sys, time
from kvmkit.cli.main import _end_on_signals
_end_on_signals()
try:
    import interrupted
    time.sleep(20)
except {error}:
    print(sys.modules["interrupted"].imported)
"""


@pytest.mark.parametrize(("name", "error"), [("SIGINT", "KeyboardInterrupt"), ("SIGTERM", "SystemExit")])
def test_an_import_is_not_cut_off(tmp_path: Path, name: str, error: str) -> None:
    (tmp_path / "interrupted.py").write_text(MODULE.format(name=name))
    (tmp_path / "main.py").write_text(MAIN.format(error=error))
    done = subprocess.run([sys.executable, tmp_path / "main.py"], capture_output=True, text=True, timeout=30)
    assert (done.returncode, done.stdout, done.stderr) == (0, "True\n", "")
