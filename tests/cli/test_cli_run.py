"""`kvmkit run`: a guest's output, input and exit status are its caller's, and so is each way to end."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from calling import COMMAND, environment, left_of
from tests.machine.guests import END, FLOOD, build

GUEST = pytest.mark.guest
TCG = ("run", "--accel", "tcg")


@pytest.fixture(scope="session", autouse=True)
def image() -> None:
    """The default guest, built here if it is not yet: not in the time of the test that comes first."""
    from kvmkit.errors import HostError
    from kvmkit.guest import images

    try:
        images.ensure()
    except HostError as error:
        pytest.skip(f"the guest image can't be built here: {error}")


@GUEST
def test_output_and_status_are_the_commands(kvmkit) -> None:
    done = kvmkit(*TCG, "--", "sh", "-c", "uname -r; echo told >&2; exit 7")
    assert done.returncode == 7
    assert done.stdout.count("\n") == 1
    assert "cloud-amd64" in done.stdout
    assert done.stderr == "told\n"


@GUEST
def test_input_is_passed_to_its_end(kvmkit) -> None:
    text = "".join(f"line {i}\n" for i in range(5000))
    done = kvmkit(*TCG, "--", "sh", "-c", "wc -l; echo done", input=text)
    assert (done.returncode, done.stdout) == (0, "5000\ndone\n")


@GUEST
@pytest.mark.parametrize(
    ("command", "status"),
    [(["true"], 0), (["no-such-program"], 127), (["/etc/passwd"], 126), (["sh", "-c", "kill -9 $$"], 137)],
)
def test_statuses_are_a_shells(kvmkit, command: list[str], status: int) -> None:
    assert kvmkit(*TCG, "--", *command).returncode == status


@GUEST
def test_words_reach_the_guest_unchanged(kvmkit) -> None:
    done = kvmkit(*TCG, "--", "printf", "%s|", "a b", "", "*", "$HOME", "--", "é", "-x")
    assert done.stdout == "a b||*|$HOME|--|é|-x|"


@GUEST
def test_without_a_terminal_it_demonstrates(kvmkit) -> None:
    done = kvmkit(*TCG)
    assert done.returncode == 0
    assert "Debian" in done.stdout
    assert 1 < done.stdout.count("\n") < 6
    assert done.stderr == ""


@GUEST
def test_stats_tell_what_it_cost(kvmkit, tmp_path: Path) -> None:
    path = tmp_path / "stats.json"
    assert kvmkit(*TCG, "--stats", str(path), "--", "true").returncode == 0
    stats = json.loads(path.read_text())
    assert stats["accel"] == "tcg"
    names = ("first_instruction", "kernel_first_line", "user_space", "command_end")
    moments = [stats[f"{name}_ms"] for name in names if stats[f"{name}_ms"] is not None]
    assert moments == sorted(moments)
    assert len(moments) >= 3
    assert sum(stats["exits"].values()) > 0
    assert stats["peak_rss_bytes"] > 0
    assert [entry.name for entry in tmp_path.iterdir()] == ["stats.json"]


def test_stats_go_to_a_pipe_without_a_name(tmp_path: Path) -> None:
    kernel = build(tmp_path, END["debug exit"])
    command = [*COMMAND, *TCG, "--kernel", kernel, "--debug-exit", "--stats", "/dev/stdout"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, env=environment(), timeout=60)
    assert done.stderr == b""
    assert json.loads(done.stdout)["accel"] == "tcg"


@GUEST
def test_a_panic_is_told(kvmkit) -> None:
    done = kvmkit(*TCG, "--append", "rdinit=/nonexistent root=/dev/none", "--", "true")
    assert done.returncode == 1
    last = done.stderr.rstrip("\n").split("\n")[-1]
    assert last.startswith("kvmkit: the guest's kernel panicked: ")


@GUEST
def test_a_guest_that_powers_off_first(kvmkit) -> None:
    done = kvmkit(*TCG, "--", "sh", "-c", "poweroff -f; sleep 60")
    assert done.returncode == 1
    assert "powered off before sh ended" in done.stderr


@GUEST
def test_memory_too_small_for_the_kernel(kvmkit) -> None:
    done = kvmkit(*TCG, "--memory", "16M", "--", "true")
    assert done.returncode == 2
    assert done.stderr.count("\n") == 1


@pytest.mark.parametrize(
    ("end", "status"),
    [("debug exit", 0x21), ("power off", 0), ("reset", 1), ("triple fault", 1), ("spin", 124), ("sleep", 124)],
)
def test_the_ends_of_a_kernel(kvmkit, tmp_path: Path, end: str, status: int) -> None:
    kernel = build(tmp_path, 'say 0x3f8, "hello\\n"\n' + END[end])
    timeout = ("--timeout", "1") if status == 124 else ("--timeout", "60")
    done = kvmkit(*TCG, "--kernel", kernel, "--debug-exit", *timeout)
    assert done.returncode == status, done
    assert done.stdout == "hello\n"
    if status in (1, 124):
        assert done.stderr.split("\n")[-2].startswith("kvmkit: ")
    else:
        assert done.stderr == ""
    if end == "triple fault":
        assert "rip" in done.stderr or "cr0" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_flood_ends_by_its_timeout(tmp_path: Path) -> None:
    kernel = build(tmp_path, FLOOD)
    command = [*COMMAND, *TCG, "--kernel", kernel, "--timeout", "2"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, stdout=subprocess.DEVNULL, env=environment(), timeout=60)
    assert done.returncode == 124


@pytest.mark.parametrize(
    ("number", "status"),
    [(signal.SIGINT, 130), (signal.SIGTERM, 143), (signal.SIGHUP, 129)],
    ids=["INT", "TERM", "HUP"],
)
def test_signals_end_it_cleanly(tmp_path: Path, number: int, status: int) -> None:
    kernel = build(tmp_path, 'say 0x3f8, "up\\n"\n' + END["spin"])
    stats, disk = tmp_path / "stats.json", tmp_path / "disk"
    disk.write_bytes(bytes(1 << 20))  # no driver has had time for it, which is not worth a word
    process = subprocess.Popen(
        [*COMMAND, *TCG, "--kernel", kernel, "--disk", str(disk), "--stats", str(stats)],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.send_signal(number)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (status, b"")
    assert not left_of(process.pid)
    assert json.loads(stats.read_text())["accel"] == "tcg"  # it came to the end of what it does


@GUEST
def test_a_signal_while_a_command_runs() -> None:
    process = subprocess.Popen(
        [*COMMAND, *TCG, "--", "sh", "-c", "echo up; sleep 100"],
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        env=environment(),
        start_new_session=True,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    os.killpg(process.pid, signal.SIGINT)
    _, err = process.communicate(timeout=30)
    assert (process.returncode, err) == (130, b"")
    assert not left_of(process.pid)


@GUEST
def test_a_reader_that_leaves_ends_the_command(kvmkit) -> None:
    began = time.monotonic()
    process = subprocess.Popen(
        [*COMMAND, *TCG, "--", "yes"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=environment()
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"y\n"
    process.stdout.close()
    assert process.wait(60) in (1, 141)  # what `yes` makes of it
    assert time.monotonic() - began < 100


@GUEST
@pytest.mark.root
def test_an_ordinary_user_runs_a_command(as_nobody, tmp_path: Path) -> None:
    import shutil

    from kvmkit.paths import cache_dir

    home = tmp_path / "home"
    shutil.copytree(cache_dir() / "images", home / "cache" / "images")
    for directory, _, files in os.walk(home):
        for name in ["", *files]:
            os.chown(os.path.join(directory, name), 65534, 65534)
    done = as_nobody(*TCG, "--", "sh", "-c", "id -u; exit 5")
    assert (done.returncode, done.stdout) == (5, "0\n")
