"""A VM whose directory lies on a disk that is full."""

from __future__ import annotations

import errno
import json
import os
import subprocess
from pathlib import Path

import pytest

from kvmkit.manager import files

from .conftest import caller
from .test_life import spinning


@pytest.mark.guest
@pytest.mark.root
def test_a_vm_on_a_full_disk_is_accounted_for(tmp_path: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("needs root, to mount a small file system")
    small = tmp_path / "small"
    small.mkdir()
    if subprocess.run(["mount", "-t", "tmpfs", "-o", "size=4M", "none", str(small)], check=False).returncode:
        pytest.skip("can't mount here")
    run = caller(small)
    try:
        for name in ("one", "two"):
            assert run("run", "-d", "--name", name, *spinning(tmp_path)).returncode == 0
        subprocess.run(["dd", "if=/dev/zero", f"of={small}/filling", "bs=4k"], capture_output=True, check=False)
        assert os.statvfs(small).f_bavail == 0
        for verb, state in (("pause", "paused"), ("resume", "running"), ("pause", "paused"), ("kill", "stopped")):
            assert run(verb, "one").returncode == 0, verb
            rows = {row["name"]: row for row in json.loads(run("ps", "-a", "--json").stdout)}
            assert rows["one"]["state"] == state
        assert rows["one"]["ended"]["reason"] == "killed"
        assert rows["two"]["state"] == "running"
        done = run("run", "-d", "--name", "three", *spinning(tmp_path))
        assert done.returncode == 1, done
        assert "No space left on device" in done.stderr
        assert run("rm", "-f", "one", "two").returncode == 0
        assert run("ps", "-aq").stdout == ""
    finally:
        run("rm", "-f", "one", "two", "three")
        subprocess.run(["umount", str(small)], check=True)


def test_a_record_is_replaced_on_a_full_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")

    directory = os.open(tmp_path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        files.replace(directory, "note", b"{}")
        monkeypatch.setattr(files, "replace", full)
        with pytest.raises(OSError, match="No space left"):  # nothing was set aside
            files.replace_or_use_spare(directory, "note", b"{1}")
        files.set_aside(directory, "note")
        (tmp_path / ".note.old").write_bytes(b"of one that was killed in the midst")
        for text in (b"{2}", b"{3}", b"{4}"):
            files.replace_or_use_spare(directory, "note", text)
            assert (tmp_path / "note").read_bytes().rstrip() == text
    finally:
        os.close(directory)
