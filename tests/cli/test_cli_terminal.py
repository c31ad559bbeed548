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

from kvmkit.terminal import EscapeKey, drain, waking

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
            env={**environment(), "TERM": "vt100", "PYTHONFAULTHANDLER": "1"},
            process_group=0,
        )

    def comes(self, text: bytes, seconds: float) -> bool:
        """Read what is shown until `text` comes; False if it does not."""
        end = time.monotonic() + seconds
        while text not in self.shown:
            left = end - time.monotonic()
            if left <= 0:
                return False
            if select.select([self.host], [], [], left)[0]:
                self.shown += os.read(self.host, 4096)
        return True

    def until(self, text: bytes) -> None:
        assert self.comes(text, 90), f"no {text!r} in {self.shown!r}"

    def type(self, keys: bytes) -> None:
        os.write(self.host, keys)

    def ask(self, line: bytes, *answers: bytes) -> None:
        """Type a line for a shell until it answers. busybox's asks the terminal where its cursor is at each prompt, and
        swallows what is typed meanwhile: a line that got no answer is given up (Ctrl-C) and typed again."""
        for _ in range(20):
            self.type(line + b"\r")
            if all(self.comes(answer, 5) for answer in answers):
                return
            self.type(b"\x03")
        raise AssertionError(f"no answer to {line!r} in {self.shown!r}")

    def leave(self, line: bytes) -> int:
        """The same for a line that ends the shell; returns kvmkit's exit status."""
        for _ in range(20):
            self.type(line + b"\r")
            if self.ended(5):
                break
        return self.end()

    def children(self) -> list[int]:
        listed = Path(f"/proc/{self.process.pid}/task/{self.process.pid}/children").read_text()
        return [int(word) for word in listed.split()]

    def ended(self, seconds: float) -> bool:
        """Whether it ends in that time; what is still shown is read, so that it never waits for that."""
        end = time.monotonic() + seconds
        while self.process.poll() is None and time.monotonic() < end:
            if select.select([self.host], [], [], 0.05)[0]:
                self.shown += os.read(self.host, 4096)
        return self.process.poll() is not None

    def end(self) -> int:
        """Its exit status."""
        if not self.ended(60):
            for child in self.children():
                os.kill(child, signal.SIGABRT)  # faulthandler tells where it is
            self.ended(5)
            raise AssertionError(f"it did not end: {self.shown.decode(errors='replace')}")
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
    shell.ask(b"stty size; tty", b"33 99", b"/dev/pts/")
    shell.ask(b"echo run$((40+2)); sleep 50", b"run42")
    shell.type(b"\x03")  # Ctrl-C is the guest's: it ends the sleep, not us
    shell.until(b"^C")
    assert shell.leave(b"exit 6") == 6
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
    console.ask(b"echo $((6*7))", b"42\r\n")
    assert console.leave(b"exit") == 0
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


@pytest.mark.parametrize(
    ("number", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130), (signal.SIGHUP, 129), (signal.SIGQUIT, 131)]
)
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


def test_a_signal_that_comes_just_before_a_wait_ends_it() -> None:
    """Its handler has run by then, so that poll alone would wait for the next one."""
    before = signal.signal(signal.SIGUSR1, lambda number, frame: None)
    try:
        with waking() as signals:
            poll = select.poll()
            poll.register(signals, select.POLLIN)
            assert poll.poll(0) == []
            os.kill(os.getpid(), signal.SIGUSR1)
            assert poll.poll(10_000) == [(signals, select.POLLIN)]
            drain(signals)
            drain(signals)
            assert poll.poll(0) == []
        assert signal.set_wakeup_fd(-1) == -1
    finally:
        signal.signal(signal.SIGUSR1, before)
