"""A VM's life by the verbs a user has."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import time
from pathlib import Path

import pytest
from tests.cli.calling import COMMAND, environment
from tests.machine.guests import END, build

from kvmkit.errors import HostError
from kvmkit.manager import files
from kvmkit.manager.home import open_home

pytestmark = pytest.mark.guest


def one_line(done, status: int, word: str = "") -> None:
    assert done.returncode == status, done
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert done.stderr.startswith("kvmkit: ")
    assert word in done.stderr


def state(kvmkit, name: str) -> dict:
    return next(row for row in json.loads(kvmkit("ps", "-a", "--json").stdout) if row["name"] == name)


def spinning(tmp_path: Path) -> tuple[str, ...]:
    """A VM that starts in no time and never ends by itself."""
    return ("--accel", "tcg", "--memory", "16M", "--kernel", build(tmp_path, 'say 0x3f8, "up\\n"\n' + END["sleep"]))


def test_exec_passes_streams_and_status(kvmkit, web: str) -> None:
    done = kvmkit("exec", "-i", web, "--", "sh", "-c", "cat; echo err >&2; exit 7", input="text")
    assert (done.returncode, done.stdout, done.stderr) == (7, "text", "err\n")


def test_exec_sets_environment_and_directory(kvmkit, web: str) -> None:
    done = kvmkit("exec", "-e", "COLOUR=a b", "-w", "/tmp", web, "sh", "-c", "pwd; echo $COLOUR")
    assert done.stdout == "/tmp\na b\n"


def test_exec_again_and_again_after_idling(kvmkit, web: str) -> None:
    for number in range(8):
        time.sleep(0.1)
        assert kvmkit("exec", web, "echo", str(number), timeout=20).stdout == f"{number}\n"


def test_many_execs_at_once(home: Path, web: str) -> None:
    env = {**environment(), "KVMKIT_HOME": str(home)}
    words = [*COMMAND, "exec", web, "--", "sh", "-c"]
    running = [
        subprocess.Popen([*words, f"sleep 0.5; echo {n}; exit {n}"], stdout=subprocess.PIPE, env=env) for n in range(8)
    ]
    for number, process in enumerate(running):
        out, _ = process.communicate(timeout=60)
        assert (process.returncode, out) == (number, f"{number}\n".encode())


def test_a_client_that_is_killed_takes_its_command_along(kvmkit, home: Path, web: str) -> None:
    env = {**environment(), "KVMKIT_HOME": str(home)}
    process = subprocess.Popen(
        [*COMMAND, "exec", web, "--", "sh", "-c", "trap '' HUP; echo up; exec sleep 4321"],
        stdout=subprocess.PIPE,
        env=env,
    )
    assert process.stdout is not None
    assert process.stdout.readline() == b"up\n"
    process.kill()
    process.wait()
    end = time.monotonic() + 20
    while "4321" in kvmkit("exec", web, "ps").stdout:
        assert time.monotonic() < end
    process.stdout.close()


def test_exec_ends_by_its_timeout(kvmkit, web: str) -> None:
    one_line(kvmkit("exec", "--timeout", "0.5", web, "sleep", "100"), 124, "did not end within")


def test_pause_and_resume(kvmkit, web: str) -> None:
    assert kvmkit("pause", web).returncode == 0
    assert state(kvmkit, web)["state"] == "paused"
    assert kvmkit("resume", web).returncode == 0
    assert state(kvmkit, web)["state"] == "running"
    assert kvmkit("exec", web, "true").returncode == 0


TRACE = """
mount -t tracefs none /sys/kernel/tracing && cd /sys/kernel/tracing/events/syscalls/sys_enter_ioctl || exit 9
echo 'cmd == 0x5207 || cmd == 0x40085203' >filter && echo 1 >enable
"""
"""RNDRESEEDCRNG and RNDADDENTROPY of <linux/random.h>, as the guest's kernel sees them."""


def test_random_numbers_begin_anew_after_a_pause(kvmkit, web: str) -> None:
    assert kvmkit("exec", web, "sh", "-c", TRACE).returncode == 0
    for verb in ("pause", "resume"):
        assert kvmkit(verb, web).returncode == 0
    seen = kvmkit("exec", web, "cat", "/sys/kernel/tracing/trace").stdout
    assert seen.index("cmd: 40085203") < seen.index("cmd: 5207")


def test_inspect_logs_stats_events(kvmkit, web: str) -> None:
    (told,) = json.loads(kvmkit("inspect", web).stdout)
    assert (told["spec"]["memory"], told["live"]["agent"], told["engine"]) == ("128M", True, "tcg")
    assert told["memory_given"] == 128 << 20
    assert told["memory_used"] > 0
    assert kvmkit("logs", web).returncode == 0
    (row,) = json.loads(kvmkit("stats", "--json", web).stdout)
    assert row["pid"] > 0
    events = [json.loads(line)["event"] for line in kvmkit("events", "--json", web).stdout.splitlines()]
    assert events[:2] == ["created", "started"]


def test_what_can_not_be_done_with_a_running_vm(kvmkit, web: str) -> None:
    one_line(kvmkit("rm", web), 1, "running")
    one_line(kvmkit("start", web), 1, "running already")
    one_line(kvmkit("create", "--name", web), 2, "already")


def test_an_unknown_name_gets_the_nearest(kvmkit, web: str) -> None:
    for verb in ("exec", "stop", "rm", "logs", "console", "inspect", "start"):
        words = (verb, "wbe") if verb != "exec" else (verb, "wbe", "true")
        done = kvmkit(*words)
        assert done.returncode == 2
        assert "did you mean web?" in done.stderr
    for name in ("../web", "", ".", "a/b", "a b"):
        assert kvmkit("create", "--name", name).returncode == 2


def test_create_start_stop_restart_rm(kvmkit) -> None:
    assert kvmkit("create", "--name", "db", "--accel", "tcg", "--memory", "128M").stdout == "db\n"
    assert state(kvmkit, "db")["state"] == "created"
    assert "db" not in kvmkit("ps", "-q").stdout.split()
    assert kvmkit("start", "--wait", "db").returncode == 0
    assert kvmkit("rename", "db", "store").returncode == 0
    assert kvmkit("exec", "store", "hostname").returncode == 0
    assert kvmkit("stop", "store").returncode == 0
    row = state(kvmkit, "store")
    assert (row["state"], row["ended"]["reason"], row["ended"]["detail"]) == ("stopped", "stopped", "")
    one_line(kvmkit("exec", "store", "true"), 1, "not running")
    assert kvmkit("rm", "store").returncode == 0
    assert "store" not in kvmkit("ps", "-aq").stdout.split()


def test_a_command_in_the_background(kvmkit) -> None:
    words = ("run", "-d", "--name", "job", "--accel", "tcg", "--memory", "128M")
    assert kvmkit(*words, "--", "sh", "-c", "echo said; exit 9").returncode == 0
    done = kvmkit("wait", "job")
    assert (done.returncode, done.stdout) == (9, "job: command ended\n")
    assert "said" in kvmkit("logs", "job").stdout
    assert kvmkit("wait", "job").returncode == 9
    assert kvmkit("rm", "job").returncode == 0


def test_a_process_that_is_killed_is_accounted_for(kvmkit, tmp_path: Path) -> None:
    assert kvmkit("run", "-d", "--name", "doomed", *spinning(tmp_path)).returncode == 0
    pid = state(kvmkit, "doomed")["pid"]
    os.kill(pid, signal.SIGKILL)
    done = kvmkit("wait", "doomed")
    assert done.returncode == 1
    row = state(kvmkit, "doomed")
    assert row["state"] == "died"
    assert "killed" in row["ended"]["detail"]
    one_line(kvmkit("pause", "doomed"), 1, "not running")
    assert kvmkit("start", "doomed").returncode == 0  # stale socket and record heal
    assert state(kvmkit, "doomed")["state"] == "running"
    assert kvmkit("kill", "doomed").returncode == 0
    assert state(kvmkit, "doomed")["state"] == "stopped"
    assert kvmkit("rm", "doomed").returncode == 0


def test_a_process_that_hangs_is_killed(kvmkit, tmp_path: Path) -> None:
    assert kvmkit("run", "-d", "--name", "stuck", *spinning(tmp_path)).returncode == 0
    os.kill(state(kvmkit, "stuck")["pid"], signal.SIGSTOP)
    assert kvmkit("kill", "stuck").returncode == 0
    assert state(kvmkit, "stuck")["state"] == "died"
    assert kvmkit("rm", "stuck").returncode == 0


def test_ten_starts_at_once_start_it_once(kvmkit, home: Path, tmp_path: Path) -> None:
    assert kvmkit("create", "--name", "one", *spinning(tmp_path)).returncode == 0
    env = {**environment(), "KVMKIT_HOME": str(home)}
    running = [
        subprocess.Popen([*COMMAND, "start", "one"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, env=env)
        for _ in range(10)
    ]
    statuses = []
    for process in running:
        _, err = process.communicate(timeout=60)
        statuses.append(process.returncode)
        assert b"Traceback" not in err
        assert err.count(b"\n") == (1 if process.returncode else 0)
    assert sorted(statuses) == [0, *[1] * 9]
    assert kvmkit("rm", "-f", "one").returncode == 0


def test_rm_when_it_ends(kvmkit, tmp_path: Path) -> None:
    assert kvmkit("run", "-d", "--rm", "--name", "gone", *spinning(tmp_path)).returncode == 0
    assert kvmkit("kill", "gone").returncode == 0
    assert "gone" not in kvmkit("ps", "-aq").stdout.split()


def test_what_can_not_start_leaves_nothing(kvmkit) -> None:
    one_line(kvmkit("run", "-d", "--name", "none", "--kernel", "/nonexistent"), 2, "/nonexistent")
    assert "none" not in kvmkit("ps", "-aq").stdout.split()


def test_a_spec_in_a_file(kvmkit, tmp_path: Path) -> None:
    kernel = os.path.basename(build(tmp_path, 'say 0x3f8, "hello\\n"\n' + END["debug exit"]))
    file = tmp_path / "vm.toml"
    file.write_text(f'accel = "tcg"\nmemory = "16M"\nkernel = "{kernel}"\ndebug_exit = true\n')
    done = kvmkit("run", str(file))
    assert (done.returncode, done.stdout) == (0x21, "hello\n")
    file.write_text('accel = "tcg"\n\nmemroy = "16M"\n')
    one_line(kvmkit("run", str(file)), 2, f"{file}:3: memroy: there is no such key; did you mean memory?")
    file.write_text('cpus = "two"\n')
    one_line(kvmkit("create", str(file)), 2, f"{file}:1: cpus: expected `int`")
    file.write_text("cpus = \n")
    one_line(kvmkit("create", str(file)), 2, f"{file}:1: ")


def test_the_console_has_several_readers(kvmkit, home: Path, tmp_path: Path) -> None:
    kernel = build(tmp_path, 'say 0x3f8, "up\\n"\n' + END["sleep"])
    assert (
        kvmkit("run", "-d", "--name", "talk", "--accel", "tcg", "--memory", "16M", "--kernel", kernel).returncode == 0
    )
    env = {**environment(), "KVMKIT_HOME": str(home)}
    readers = [
        subprocess.Popen([*COMMAND, "console", "talk"], stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, env=env)
        for _ in range(3)
    ]
    for reader in readers:
        assert reader.stdout is not None
        assert reader.stdout.readline() == b"up\n"
    assert kvmkit("rm", "-f", "talk").returncode == 0
    for reader in readers:
        assert reader.wait(30) == 0
        reader.stdout.close()


def test_an_unnamed_vm_whose_process_died_is_shown_for_a_day(kvmkit, home: Path, tmp_path: Path) -> None:
    name = kvmkit("run", "-d", "--rm", *spinning(tmp_path)).stdout.strip()
    os.kill(state(kvmkit, name)["pid"], signal.SIGKILL)
    assert kvmkit("wait", name).returncode == 1
    assert kvmkit("create", "--name", "after").returncode == 0
    assert state(kvmkit, name)["state"] == "died"
    yesterday = time.time() - 90000
    os.utime(home / "data" / "machines" / name, (yesterday, yesterday))
    assert kvmkit("create", "--name", "later").returncode == 0
    assert name not in kvmkit("ps", "-aq").stdout.split()
    assert kvmkit("rm", "after", "later").returncode == 0


@pytest.mark.guest
def test_a_guest_that_restarts_is_spoken_to_again(kvmkit) -> None:
    assert kvmkit("run", "-d", "--name", "again", "--accel", "tcg", "--net", "none").returncode == 0
    first = kvmkit("exec", "again", "--", "cat", "/proc/sys/kernel/random/boot_id")
    kvmkit("exec", "again", "--", "reboot", "-f")
    second = kvmkit("exec", "again", "--", "cat", "/proc/sys/kernel/random/boot_id")
    assert (first.returncode, second.returncode) == (0, 0), second.stderr
    assert len(second.stdout) == len(first.stdout) > 30
    assert second.stdout != first.stdout


def test_a_guest_without_an_agent_is_told_of_in_time(kvmkit, tmp_path: Path) -> None:
    port = ("--console-port", "org.qemu.guest_agent.0")
    assert kvmkit("run", "-d", "--name", "mute", *port, *spinning(tmp_path)).returncode == 0
    try:
        one_line(kvmkit("exec", "--timeout", "1", "mute", "true"), 124, "did not answer within 1 s")
        assert kvmkit("pause", "mute").returncode == 0
        one_line(kvmkit("exec", "mute", "true"), 1, "paused")
    finally:
        kvmkit("rm", "-f", "mute")
    assert kvmkit("run", "-d", "--name", "mute", *spinning(tmp_path)).returncode == 0
    try:
        one_line(kvmkit("exec", "mute", "true"), 1, "no agent of kvmkit's")
    finally:
        kvmkit("rm", "-f", "mute")


def test_what_has_no_root_disk_gets_no_size(kvmkit) -> None:
    assert kvmkit("create", "--name", "none", "tiny").returncode == 0
    try:
        one_line(kvmkit("set", "none", "--root-size", "20G"), 2, "no root disk of its own")
        assert "root_size" not in json.loads(kvmkit("inspect", "none").stdout)[0]["spec"]
    finally:
        kvmkit("rm", "none")
    for vm in (["tiny"], ["--firmware", "bios", "--disk", "/dev/null"], ["--kernel", "vmlinuz"]):
        one_line(kvmkit("create", "--name", "none", *vm, "--root-size", "20G"), 2, "--root-size: it has no root disk")


def test_what_cannot_be_removed_is_told_of(kvmkit, home: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    assert kvmkit("create", "--name", "stays", "tiny").returncode == 0
    monkeypatch.setenv("KVMKIT_HOME", str(home))
    monkeypatch.setattr(files, "remove_tree", lambda path: None)
    with open_home("stays") as owner, pytest.raises(HostError, match=r"not all of its files.*/\.gone\."):
        owner.remove()


def test_the_default_image_stays_a_vms(kvmkit, home: Path) -> None:
    env = {**environment(), "KVMKIT_HOME": str(home), "KVMKIT_IMAGE": "tiny"}
    subprocess.run([*COMMAND, "create", "--name", "kept"], env=env, check=True, capture_output=True)
    try:
        assert json.loads(kvmkit("inspect", "kept").stdout)[0]["spec"]["image"] == "tiny"
    finally:
        kvmkit("rm", "kept")
