"""The process of a VM in the background, where it can't start."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.machine.guests import END, build

from kvmkit.manager import create, home, process
from kvmkit.manager.spec import VmSpec


def test_what_fails_late_leaves_no_pid_file_and_is_noted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(tmp_path))
    pidfile = tmp_path / "vm.pid"
    kernel = str(build(tmp_path, END["power off"]))
    create.make(VmSpec(name="late", accel="tcg", memory="16M", kernel=kernel, pidfile=str(pidfile))).close()

    def no_more() -> int:
        assert pidfile.exists()
        raise OSError(24, "Too many open files")

    monkeypatch.setattr(process, "_signals", no_more)  # a limit can't be made to bite at this very moment
    with pytest.raises(OSError, match="Too many"):
        process._start("late", 0)
    assert not pidfile.exists()
    with home.open_home("late") as own:
        assert not own.running()
        noted = own.load()
    assert noted.state == "ended"
    assert noted.ended is not None
    assert noted.ended.reason == "not started"
    assert "Too many open files" in noted.ended.detail
