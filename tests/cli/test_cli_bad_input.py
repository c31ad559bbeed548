"""Bad input: one line that says what, exit status 2, nothing started, nothing left."""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

import pytest
from calling import is_one_line

IN_WORDS = [
    (["frobnicate"], "frobnicate"),
    (["rnu"], "did you mean run?"),
    (["--frobnicate"], "--frobnicate"),
    (["--version", "run"], "--version"),
    (["help", "frobnicate"], "frobnicate"),
    (["help", "exit-statu"], "did you mean exit-status?"),
    (["run", "--frobnicate"], "--frobnicate"),
    (["run", "--memroy", "1G"], "did you mean --memory?"),
    (["run", "--mem", "1G"], "--mem"),  # abbreviations would forbid new options
    (["run", "--memory"], "--memory"),
    (["run", "--memory", "foo"], "--memory foo"),
    (["run", "--memory", "-1"], "--memory"),
    (["run", "--memory", "1K"], "--memory 1K"),
    (["run", "--memory", "1", "--timeout", "20"], ""),
    (["run", "--memory", "100T"], "--memory 100T"),
    (["run", "--memory", "9" * 400], "--memory"),
    (["run", "--cpus", "0"], "--cpus 0"),
    (["run", "--cpus", "-3"], "--cpus"),
    (["run", "--cpus", "10000"], "--cpus 10000"),
    (["run", "--cpus", "9" * 50], "--cpus"),
    (["run", "--cpus", "two"], "--cpus"),
    (["run", "--accel", "tcg", "--cpus", "2"], "--cpus 2"),
    (["run", "--accel", "foo"], "--accel foo"),
    (["run", "--cpu", "foo"], "--cpu foo"),
    (["run", "--cpu", "max,+foo"], "foo"),
    (["run", "--cpu", "max,aes"], "aes"),
    (["run", "--timeout", "0"], "--timeout"),
    (["run", "--timeout", "-1"], "--timeout"),
    (["run", "--timeout", "soon"], "--timeout"),
    (["run", "--timeout", "nan"], "--timeout"),
    (["run", "--stats", "/nonexistent/stats.json"], "/nonexistent"),
    (["run", "--stats", "/"], "is a directory"),
    (["run", "solaris"], "solaris"),
    (["run", "debian", "ubuntu"], "ubuntu"),
    (["run", "uname", "-r"], "-r"),
    (["run", "--"], "--"),
    (["run", "--console", "--", "true"], "--console"),
    (["run", "--initrd", "/etc/passwd"], "--initrd"),
    (["run", "--kernel", "/nonexistent/vmlinuz"], "/nonexistent/vmlinuz"),
    (["run", "--kernel", ""], "kernel"),
    (["run", "--kernel", "/"], "/"),
    (["run", "--kernel", "/dev/zero"], "/dev/zero"),
    (["run", "--kernel", "/etc/passwd"], "/etc/passwd"),
    (["run", "--disk", ""], "give a path first"),
    (["run", "--disk", "/nonexistent/disk.raw"], "/nonexistent/disk.raw: no such file"),
    (["run", "--disk", "/tmp"], "a directory"),
    (["run", "--disk", "/dev/null"], "neither a file nor a block device"),
    (["run", "--disk", "/etc/passwd,rw"], "no option 'rw'"),
    (["run", "--disk", "/etc/passwd,queues=9"], "no option 'queues=9'"),
    (["run", "--disk", "/etc/passwd,serial=" + "9" * 21], "20 bytes"),
    (["accel", "--frobnicate"], "--frobnicate"),
    (["accel", "more"], "more"),
]


@pytest.mark.parametrize(("words", "said"), IN_WORDS, ids=lambda value: " ".join(value)[:40] if value else "-")
def test_is_refused_in_one_line(kvmkit, words: list[str], said: str) -> None:
    done = kvmkit(*words)
    assert is_one_line(done)
    assert said in done.stderr


@pytest.mark.parametrize(
    "content",
    [b"", b"\0" * 4096, b"\x7fELF" + b"\xff" * 2000, b"MZ" + b"\x90" * 600, bytes(range(256)) * 64],
    ids=["empty", "zeros", "an ELF header of ones", "an MZ header", "all bytes"],
)
def test_a_file_that_is_no_kernel(kvmkit, tmp_path: Path, content: bytes) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(content)
    done = kvmkit("run", "--accel", "tcg", "--kernel", str(path))
    assert is_one_line(done)
    assert str(path) in done.stderr


def test_disks_that_can_not_be(kvmkit, tmp_path: Path) -> None:
    disk = tmp_path / "a,b.raw"
    disk.write_bytes(bytes(1000))
    name = str(disk).replace(",", ",,")
    done = kvmkit("run", "--disk", name)
    assert is_one_line(done)
    assert "not a multiple of 512" in done.stderr
    disk.write_bytes(bytes(1024))
    done = kvmkit("run", "--disk", name, "--disk", f"{name},ro")
    assert is_one_line(done)
    assert "given twice" in done.stderr
    with disk.open("rb") as held:
        fcntl.flock(held, fcntl.LOCK_EX)
        done = kvmkit("run", "--disk", name)
    assert is_one_line(done)
    assert f"in use by process {os.getpid()} " in done.stderr


def test_a_random_file_is_no_kernel(kvmkit, tmp_path: Path) -> None:
    path = tmp_path / "kernel"
    path.write_bytes(os.urandom(100_000))
    assert is_one_line(kvmkit("run", "--kernel", str(path)))


def test_a_name_with_control_characters_is_shown_and_not_obeyed(kvmkit, tmp_path: Path) -> None:
    done = kvmkit("run", "--kernel", str(tmp_path / "a\nb\x1b[31mc"))
    assert is_one_line(done)
    assert "\x1b" not in done.stderr


def test_a_name_that_is_not_utf_8(kvmkit) -> None:
    assert is_one_line(kvmkit("run", "--kernel", "/nonexistent/\udcff\udcfe"))


def test_a_hint_for_a_command_without_dashes(kvmkit) -> None:
    done = kvmkit("run", "uname")
    assert is_one_line(done)
    assert "kvmkit run -- uname" in done.stderr


def test_closed_descriptors_change_nothing(kvmkit) -> None:
    done = kvmkit("frobnicate", stdin=None, preexec_fn=lambda: os.close(0))
    assert is_one_line(done)


def test_no_one_to_complain_to(kvmkit) -> None:
    done = kvmkit("frobnicate", preexec_fn=lambda: os.close(2))
    assert done.returncode == 2


@pytest.mark.root
@pytest.mark.parametrize(
    "words",
    [["frobnicate"], ["run", "--memory", "foo"], ["run", "--accel", "foo"], ["run", "--kernel", "/etc/shadow"]],
    ids=" ".join,
)
def test_as_an_ordinary_user(as_nobody, words: list[str]) -> None:
    assert is_one_line(as_nobody(*words))


@pytest.mark.root
def test_a_home_that_is_not_ones_own(as_nobody, kvmkit) -> None:
    done = as_nobody("accel")
    assert done.returncode == 0
    assert "auto takes" in done.stdout or "engine" in done.stdout
