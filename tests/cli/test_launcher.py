"""`./kvmkit`: sets up what is missing, once, and then only runs."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
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


def open_to_all(path: Path) -> None:
    for directory in path.parents:
        if str(directory).startswith("/tmp/"):
            directory.chmod(directory.stat().st_mode | 0o011)


@pytest.mark.root
def test_a_checkout_that_can_not_be_written_is_told(tmp_path: Path) -> None:
    needs_root()
    checkout = copy(tmp_path / "checkout")
    open_to_all(checkout)
    done = run(checkout, "--version", prefix=NOBODY)
    assert (done.returncode, done.stdout) == (1, "")
    assert done.stderr.count("\n") == 1
    assert str(checkout) in done.stderr


@pytest.mark.root
def test_missing_packages_are_named_to_who_is_not_root(tmp_path: Path) -> None:
    needs_root()
    if shutil.which("apt-get") is None:
        pytest.skip("needs apt-get")
    checkout = copy(tmp_path / "checkout")
    open_to_all(checkout)
    for path in (checkout, *checkout.rglob("*")):
        os.chown(path, 65534, 65534)
    programs = tmp_path / "bin"
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


@IN_CI
@pytest.mark.timeout(600)
def test_from_a_clone_to_a_moved_checkout(tmp_path: Path) -> None:
    checkout = copy(tmp_path / "a checkout")
    command = [str(checkout / "kvmkit"), "--version"]
    both = [subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) for _ in range(2)]
    for process in both:  # one sets up, the other waits for it
        assert process.communicate() == (VERSION, "")
        assert process.returncode == 0
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

    changed.write_text(changed.read_text() + "this is no Python\n")
    broken = run(checkout, "--version")
    assert broken.returncode == 1
    assert "compiling" in broken.stderr
    changed.write_text(changed.read_text().replace("this is no Python\n", ""))
    (checkout / ".venv" / "kvmkit.installing").touch()  # as if pip had been killed
    moved = checkout.rename(tmp_path / "moved")
    assert run(moved, "--version").stdout == VERSION
    assert not (moved / ".venv" / "kvmkit.installing").exists()


@IN_CI
@pytest.mark.timeout(600)
def test_as_an_installed_package(tmp_path: Path) -> None:
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
