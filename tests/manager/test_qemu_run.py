"""What QEMU's command line does when it runs: where the console leads, -snapshot, -daemonize, -pidfile."""

from __future__ import annotations

import functools
import hashlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

import kvmkit
from kvmkit.boot import seabios
from kvmkit.errors import HostError

sys.path.insert(0, str(Path(__file__).parents[1] / "machine"))
from bootable import boot_sector

ECHO = """
    cli                     # the BIOS looks for keys at its timer's ticks
    mov dx, 0x3f8
    mov al, '>'; out dx, al
next:
    mov dx, 0x3fd
1:  in al, dx; test al, 1; jz 1b
    mov dx, 0x3f8
    in al, dx; out dx, al
    cmp al, 'q'
    jne next
    mov al, 5; out 0xf4, al; jmp .
"""
"""Says '>', then what it hears; 'q' ends it, with status 11."""
TCG = ("-accel", "tcg", "-m", "16", "-device", "isa-debug-exit")


@pytest.fixture(autouse=True)
def own_vms(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    try:
        seabios.find()
    except HostError as error:
        pytest.skip(str(error))
    monkeypatch.setenv("XDG_DATA_HOME", str(tmp_path / "data"))
    monkeypatch.setenv("PYTHONPATH", str(Path(kvmkit.__file__).parent.parent))
    yield
    for name in verb("ps", "-q").stdout.split():
        verb("kill", name)


def verb(*words: str) -> subprocess.CompletedProcess[str]:
    line = [sys.executable, "-m", "kvmkit", *words]
    return subprocess.run(line, capture_output=True, text=True, timeout=60, stdin=subprocess.DEVNULL)


@pytest.fixture
def start(tmp_path: Path) -> Iterator[Callable[..., subprocess.Popen[bytes]]]:
    disk = boot_sector(tmp_path, ECHO)
    running: list[subprocess.Popen[bytes]] = []

    def start(*words: str) -> subprocess.Popen[bytes]:
        line = [sys.executable, "-m", "kvmkit", "qemu", *TCG, "-hda", str(disk), *words]
        running.append(subprocess.Popen(line, stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.PIPE))
        return running[-1]

    yield start
    for process in running:
        process.kill()
        process.communicate()


def told(process: subprocess.Popen[bytes], pattern: bytes) -> str:
    """What the first line of standard error that matches says."""
    assert process.stderr is not None
    for line in process.stderr:
        if found := re.search(pattern, line):
            return found[1].decode()
    raise AssertionError(f"it ended with {process.wait()}")


def talk(read: Callable[[], bytes], write: Callable[[bytes], object]) -> None:
    hear(read, b">")  # what is typed before is the BIOS's
    write(b"hello")
    hear(read, b"hello")
    write(b"q")  # and with it goes the other end


def hear(read: Callable[[], bytes], wanted: bytes) -> None:
    heard = b""
    while wanted not in heard:
        heard += (piece := read())
        assert piece, heard


def test_serial_stdio(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    guest = start("-nographic")
    assert guest.stdin is not None
    assert guest.stdout is not None
    keys, screen = guest.stdin.fileno(), guest.stdout.fileno()
    talk(lambda: os.read(screen, 4096), lambda data: os.write(keys, data))
    assert guest.wait(30) == 11


def test_serial_file_and_null(start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    log = tmp_path / "serial.log"
    log.write_text("from before")
    guest = start("-serial", f"file:{log}")
    until(lambda: b">" in log.read_bytes())
    guest.send_signal(signal.SIGTERM)
    assert guest.communicate(timeout=30)[0] == b""
    assert b"from before" not in log.read_bytes()
    silent = start("-serial", "null")
    time.sleep(1)
    silent.send_signal(signal.SIGTERM)
    assert silent.communicate(timeout=30)[0] == b""


def test_serial_pty(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    guest = start("-serial", "pty")
    fd = os.open(told(guest, rb"serial port is at (/dev/pts/\d+)"), os.O_RDWR | os.O_NOCTTY)
    try:
        talk(lambda: os.read(fd, 4096), lambda data: os.write(fd, data))
    finally:
        os.close(fd)
    assert guest.wait(30) == 11


def test_serial_unix(start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    path = tmp_path / "serial.sock"
    guest = start("-serial", f"unix:{path},server,nowait")
    told(guest, rb"serial port is at (\S+)")
    for wanted in (b">", b"again", b"hello"):  # each client comes when the one before has gone
        with socket.socket(socket.AF_UNIX) as client:
            client.settimeout(30)
            client.connect(str(path))
            if wanted != b">":
                client.send(wanted)
            hear(functools.partial(client.recv, 4096), wanted)
            if wanted == b"hello":
                client.send(b"q")
    assert guest.wait(30) == 11
    assert not path.exists()


def until(true: Callable[[], bool]) -> None:
    end = time.monotonic() + 60
    while not true():
        assert time.monotonic() < end
        time.sleep(0.02)


def test_daemonize_and_pidfile(start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path) -> None:
    pidfile, log = tmp_path / "vm.pid", tmp_path / "serial.log"
    guest = start("-display", "none", "-daemonize", "-pidfile", str(pidfile), "-serial", f"file:{log}", "-name", "web")
    out, err = guest.communicate(timeout=60)
    assert (guest.returncode, out) == (0, b"")
    assert b"kvmkit: it runs as web" in err
    pid = int(pidfile.read_text())
    assert "web\0" in Path(f"/proc/{pid}/cmdline").read_text()
    until(lambda: b">" in log.read_bytes())
    again = start("-display", "none", "-pidfile", str(pidfile), "-snapshot")
    assert again.wait(30) == 2
    assert pidfile.read_text() == f"{pid}\n"
    assert verb("kill", "web").returncode == 0
    until(lambda: not pidfile.exists())


def test_what_can_not_be_started_leaves_no_pid_file(
    start: Callable[..., subprocess.Popen[bytes]], tmp_path: Path
) -> None:
    pidfile, serial = tmp_path / "vm.pid", tmp_path / "nowhere" / "serial.log"
    for more in ([], ["-daemonize"]):
        guest = start("-display", "none", "-pidfile", str(pidfile), "-serial", f"file:{serial}", *more)
        out, err = guest.communicate(timeout=60)
        assert (guest.returncode, out) == (2, b"")
        assert str(serial).encode() in err.splitlines()[-1]
        assert b"Traceback" not in err
        assert not pidfile.exists()
    assert verb("ps", "--all", "-q").stdout == ""


def test_daemonize_with_the_console_on_the_terminal_is_refused(start: Callable[..., subprocess.Popen[bytes]]) -> None:
    guest = start("-nographic", "-daemonize")
    _, err = guest.communicate(timeout=30)
    assert guest.returncode == 2
    assert b"nearest: -display none" in err


def test_snapshot_throws_changes_away_but_keeps_them_over_a_reset(tmp_path: Path) -> None:
    text = """
        call second
        cmp byte ptr [0x8000], 'y'
        je again
        mov byte ptr [0x8000], 'y'
        mov ax, 0x0301; mov cx, 2; mov dh, 0; mov bx, 0x8000
        int 0x13
        mov al, 0xfe; out 0x64, al; jmp .
    again: jmp leave
    """
    disk = boot_sector(tmp_path, text, b"n")
    before = hashlib.sha256(disk.read_bytes()).digest()
    done = verb("qemu", *TCG, "-nographic", "-snapshot", "-hda", str(disk))
    assert done.returncode == 11, done.stderr
    assert hashlib.sha256(disk.read_bytes()).digest() == before
    kept = verb("run", "--accel", "tcg", "--firmware", "bios", "--debug-exit", "--disk", f"{disk},snapshot")
    assert kept.returncode == 11, kept.stderr
    assert hashlib.sha256(disk.read_bytes()).digest() == before
    done = verb("qemu", *TCG, "-nographic", "-hda", str(disk))
    assert done.returncode == 11, done.stderr
    assert disk.read_bytes()[512:513] == b"y"


def test_snapshot_without_room_is_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    disk = boot_sector(tmp_path, "jmp leave")
    monkeypatch.setenv("TMPDIR", "/proc")
    done = verb("qemu", *TCG, "-nographic", "-snapshot", "-hda", str(disk))
    assert done.returncode == 1
    assert "name a directory with room by TMPDIR" in done.stderr.splitlines()[-1]
