"""`./kvmkit`: sets up what is missing, once, and then only runs."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from kvmkit import __version__

ROOT = Path(__file__).parents[2]
VERSION = f"kvmkit {__version__}\n"
IN_CI = pytest.mark.skipif(not os.environ.get("CI"), reason="takes minutes and the network; .ci/run runs it")
SETPRIV = shutil.which("setpriv") or "setpriv"  # by its path: some tests hide all programs from PATH
NOBODY = (SETPRIV, "--reuid=65534", "--regid=65534", "--clear-groups")


def copy(target: Path) -> Path:
    """The files of this checkout, as a clone has them."""
    if shutil.which("git") is None or not (ROOT / ".git").exists():
        pytest.skip("needs git and a checkout")
    listed = subprocess.run(["git", "ls-files", "-z"], cwd=ROOT, capture_output=True, text=True)
    if listed.returncode:
        pytest.skip("git does not read this checkout")
    for name in filter(None, listed.stdout.split("\0")):
        if (ROOT / name).is_file() and not name.startswith("tests/"):
            (target / name).parent.mkdir(parents=True, exist_ok=True)
            shutil.copy2(ROOT / name, target / name)
    return target


def run(
    checkout: Path, *words: str, prefix: tuple[str, ...] = (), **options: object
) -> subprocess.CompletedProcess[str]:
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    given: dict = {"cwd": "/", "env": environment, **options}
    command = [*prefix, str(checkout / "kvmkit"), *words]
    return subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, **given)


def needs_root() -> None:
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("needs root and setpriv, to be somebody else")


@pytest.mark.root
def test_a_checkout_that_can_not_be_written_is_told(open_path: Path) -> None:
    needs_root()
    checkout = copy(open_path / "checkout")
    done = run(checkout, "--version", prefix=NOBODY)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert str(checkout) in done.stderr


@pytest.mark.root
def test_missing_packages_are_named_to_who_is_not_root(open_path: Path) -> None:
    needs_root()
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    checkout = copy(open_path / "checkout")
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 65534, 65534)
    programs = open_path / "bin"
    programs.mkdir()
    for name in ("sh", "flock", "id", "apt-get", "python3", "cat"):  # and no gcc
        found = "/usr/bin/python3" if name == "python3" else shutil.which(name)
        (programs / name).symlink_to(str(found))
    done = run(checkout, "--version", prefix=NOBODY, env={"PATH": str(programs)})
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert "sudo apt-get install " in done.stderr
    assert done.stderr.split("install ")[-1].split()[-2:] == ["gcc", "libc6-dev"]
    assert not (checkout / ".venv").exists()


def processes_of(checkout: Path) -> list[str]:
    """The command lines of those that run for this checkout: they name it, are in it, or wait for its lock."""
    found = []
    for process in Path("/proc").glob("[0-9]*"):
        try:
            words = (process / "cmdline").read_bytes().replace(b"\0", b" ").decode(errors="replace")
            places = [os.readlink(process / "cwd")]
            places += [os.readlink(process / "fd" / "9")] if (process / "fd" / "9").is_symlink() else []
            if any(str(checkout) in text for text in (words, *places)):
                found.append(words)
        except OSError:
            pass  # it has ended
    return found


@pytest.mark.parametrize(("number", "status"), [(signal.SIGTERM, 143), (signal.SIGHUP, 129)])
def test_a_signal_ends_the_set_up_and_all_it_has_started(tmp_path: Path, number: int, status: int) -> None:
    checkout = copy(tmp_path / "checkout")
    log = checkout / ".venv" / "setup.log"
    process = subprocess.Popen([checkout / "kvmkit", "--version"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    end = time.monotonic() + 60
    while not log.exists() or "making a virtual environment" not in log.read_text():
        assert process.poll() is None, process.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    waiting = subprocess.Popen([checkout / "kvmkit", "--version"], stdin=subprocess.DEVNULL, stderr=subprocess.PIPE)
    while "flock 9" not in str(processes_of(checkout)):
        assert waiting.poll() is None, waiting.communicate()
        assert time.monotonic() < end
        time.sleep(0.02)
    for one in waiting, process:
        one.send_signal(number)
        assert one.wait(30) == status
        assert one.communicate() == (None, b"")
    while processes_of(checkout):  # they have been sent their signal, and may take a moment
        assert time.monotonic() < end, processes_of(checkout)
        time.sleep(0.02)


APT_GET = """#!/bin/sh
echo "$*" >>{log}
case "$* $(grep -c update {log})" in
*update*" 1") echo "E: Could not get lock /var/lib/apt/lists/lock. It is held by process 1" >&2; exit 100 ;;
*install*" 0") exit 100 ;;
esac
"""


def test_another_apt_is_waited_for(tmp_path: Path) -> None:
    log, programs = tmp_path / "log", tmp_path / "bin"
    programs.mkdir()
    for name, text in ("apt-get", APT_GET.format(log=log)), ("dpkg", f'#!/bin/sh\necho "dpkg $*" >>{log}\n'):
        (programs / name).write_text(text)
        (programs / name).chmod(0o755)
    environment = {**os.environ, "PATH": f"{programs}:{os.environ['PATH']}"}
    command = ["sh", ROOT / "scripts" / "apt.sh", "gcc", "git"]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0, done.stderr
    install = "-o DPkg::Lock::Timeout=600 install -y --no-install-recommends gcc git"
    assert log.read_text().splitlines() == [install, "dpkg --configure -a", "update", "update", install]


@IN_CI
@pytest.mark.timeout(600)
def test_from_a_clone_to_a_moved_checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_OPTIMIZE", "-O0")  # that compilers take long is not what is tested
    checkout = copy(tmp_path / "a checkout")
    for place in ("kvmkit.installing", "lib/half a package"):  # as if pip had been killed
        (checkout / ".venv" / place).parent.mkdir(parents=True, exist_ok=True)
        (checkout / ".venv" / place).touch()
    command = [str(checkout / "kvmkit"), "--version"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:  # one sets up, the other waits for it
        assert process.communicate() == (VERSION, "")
        assert process.returncode == 0
    assert not any((checkout / ".venv" / place).exists() for place in ("kvmkit.installing", "lib/half a package"))
    stamp = checkout / "build" / "kvmkit.ready"
    before = stamp.stat().st_mtime_ns
    link = tmp_path / "link"
    link.symlink_to(checkout / "kvmkit")
    for path in checkout / "kvmkit", link:
        done = subprocess.run([path, "--version"], capture_output=True, text=True)
        assert (done.returncode, done.stdout, done.stderr) == (0, VERSION, "")
    assert stamp.stat().st_mtime_ns == before, "it was set up again, for nothing"

    changed = checkout / "src" / "kvmkit" / "bus" / "space.py"
    changed.write_text(changed.read_text() + "\nANSWER = 42\n")
    assert run(checkout, "--version").stdout == VERSION
    assert stamp.stat().st_mtime_ns > before
    script = "from kvmkit.bus import space; print(space.ANSWER)"
    environment = {**os.environ, "PYTHONPATH": str(checkout / "src")}
    python = [str(checkout / ".venv" / "bin" / "python"), "-c", script]
    assert subprocess.run(python, capture_output=True, text=True, env=environment).stdout == "42\n"

    (built,) = changed.parent.glob("device.*.so")
    built.unlink()
    assert run(checkout, "--version").stdout == VERSION
    assert built.exists(), "a compiled module that is gone is made again"

    changed.write_text(changed.read_text() + "this is no Python\n")
    broken = run(checkout, "--version")
    assert broken.returncode == 1
    assert "compiling" in broken.stderr
    changed.write_text(changed.read_text().replace("this is no Python\n", ""))
    moved = checkout.rename(tmp_path / "moved")
    assert run(moved, "--version").stdout == VERSION


@IN_CI
@pytest.mark.timeout(600)
def test_as_an_installed_package(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("KVMKIT_OPTIMIZE", "-O0")
    source, installed = copy(tmp_path / "source"), tmp_path / "installed"
    subprocess.run([sys.executable, "-m", "venv", installed], check=True)
    python = installed / "bin" / "python"
    subprocess.run([python, "-m", "pip", "install", "--quiet", source], check=True)
    environment = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}

    def kvmkit(*words: str) -> subprocess.CompletedProcess[str]:
        command = [installed / "bin" / "kvmkit", *words]
        return subprocess.run(command, cwd="/", env=environment, capture_output=True, text=True)

    assert kvmkit("--version").stdout == VERSION
    done = kvmkit("run", "--accel", "tcg", "--", "sh", "-c", "echo here; exit 3")
    assert (done.returncode, done.stdout) == (3, "here\n")
