"""`kvmkit run` on a terminal: a shell, the console, the escape key, and settings that are as they were afterwards."""

from __future__ import annotations

import os
import pty
import select
import signal
import subprocess
import termios
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from calling import COMMAND, environment, left_of
from tests.machine.guests import END, build

from kvmkit.terminal import EscapeKey

TCG = ("run", "--accel", "tcg")


class Session:
    """kvmkit on a pty of its own, as its controlling terminal."""

    def __init__(self, *words: str) -> None:
        self.host, self.user = pty.openpty()
        termios.tcsetwinsize(self.user, (33, 99))
        self.before = termios.tcgetattr(self.user)
        self.shown = b""
        self.process = subprocess.Popen(
            ["setsid", "--ctty", "--wait", *COMMAND, *words],
            stdin=self.user,
            stdout=self.user,
            stderr=self.user,
            env={**environment(), "TERM": "vt100"},
            process_group=0,
        )

    def until(self, text: bytes, seconds: float = 60) -> None:
        """Read what is shown until `text` comes."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            left = end - time.monotonic()
            assert left > 0, f"no {text!r} in {self.shown!r}"
            if select.select([self.host], [], [], left)[0]:
                self.shown += os.read(self.host, 4096)

    def type(self, keys: bytes) -> None:
        os.write(self.host, keys)

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in listed.split()]

    def end(self) -> int:
        """Its exit status; what is still shown is read, so that it never waits for that."""
        end = time.monotonic() + 30
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.host], [], [], 0.05)[0]:
                self.shown += os.read(self.host, 4096)
        return self.process.wait(0)

    def restored(self) -> bool:
        return termios.tcgetattr(self.user) == self.before

    def close(self) -> None:
        if self.process.poll() is None:
            for child in self.children():
                os.kill(child, signal.SIGKILL)
            self.process.wait()
        os.close(self.host)
        os.close(self.user)


@pytest.fixture
def session() -> Iterator[type[Session]]:
    made: list[Session] = []

    class Kept(Session):
        def __init__(self, *words: str) -> None:
            super().__init__(*words)
            made.append(self)

    yield Kept
    for one in made:
        one.close()


@pytest.mark.guest
def test_a_shell_on_a_terminal(session) -> None:
    shell = session(*TCG)
    shell.until(b"# ")
    assert EscapeKey.NAME.encode() in shell.shown
    assert not shell.restored()
    shell.type(b"stty size; tty\r")
    shell.until(b"33 99")
    shell.until(b"/dev/pts/")
    shell.type(b"sleep 50\r")
    time.sleep(0.5)
    shell.type(b"\x03")  # Ctrl-C is the guest's: it ends the sleep, not us
    shell.until(b"^C")
    shell.type(b"exit 6\r")
    assert shell.end() == 6
    assert shell.restored()


@pytest.mark.guest
def test_a_terminal_for_a_command(session) -> None:
    command = session(*TCG, "--tty", "--", "sh", "-c", "tty; read line; echo got $line; exit 3")
    command.until(b"/dev/pts/")
    command.type(b"words\r")
    assert command.end() == 3
    assert b"got words" in command.shown
    assert command.restored()


@pytest.mark.guest
def test_the_console_has_a_shell(session) -> None:
    console = session(*TCG, "--console")
    console.until(b"# ")
    assert b"Linux version" in console.shown
    console.type(b"echo $((6*7))\r")
    console.until(b"42\r\n")
    console.type(b"exit\r")
    assert console.end() == 0
    assert console.restored()


def spinning(tmp_path: Path) -> tuple[str, ...]:
    return (*TCG, "--kernel", build(tmp_path, 'say 0x3f8, "up\\n"\n' + END["spin"]))


def test_the_escape_key_leaves_a_guest_that_spins(session, tmp_path: Path) -> None:
    console = session(*spinning(tmp_path))
    console.until(b"up")
    assert EscapeKey.NAME.encode() in console.shown
    console.type(b"abc\x1d")
    console.type(b"x")
    assert console.end() == 0
    assert console.restored()


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129)])
def test_a_signal_leaves_the_terminal_as_it_was(session, tmp_path: Path, number: int, status: int) -> None:
    console = session(*spinning(tmp_path))
    console.until(b"up")
    assert not console.restored()
    (kvmkit,) = console.children()
    os.kill(kvmkit, number)
    assert console.end() == status
    assert console.restored()
    assert not left_of(kvmkit)


def test_a_fault_leaves_the_terminal_as_it_was(session, tmp_path: Path) -> None:
    kernel = build(tmp_path, 'say 0x3f8, "up\\n"\n' + END["triple fault"])
    console = session(*TCG, "--kernel", kernel)
    assert console.end() == 1
    assert console.restored()
    assert b"kvmkit: " in console.shown


def test_a_terminal_that_hangs_up_ends_it(session, tmp_path: Path) -> None:
    console = session(*spinning(tmp_path))
    console.until(b"up")
    (kvmkit,) = console.children()
    os.close(console.user)
    os.close(console.host)
    try:
        console.process.wait(30)
        assert not left_of(kvmkit)
    finally:
        console.host, console.user = pty.openpty()  # for close()


@pytest.mark.parametrize(
    ("typed", "passed", "left"),
    [
        ([b"abc"], b"abc", False),
        ([b"\x1dx"], b"", True),
        ([b"\x1d", b"x"], b"", True),
        ([b"a\x1dXb"], b"a", True),
        ([b"\x1d\x1d"], b"\x1d", False),
        ([b"\x1d\x1dx"], b"\x1dx", False),
        ([b"\x1dy"], b"\x1dy", False),
        ([b"x\x1d"], b"x", False),
    ],
)
def test_the_escape_keys_parts(typed: list[bytes], passed: bytes, left: bool) -> None:
    key = EscapeKey()
    assert b"".join(map(key.feed, typed)) == passed
    assert key.pressed is left
