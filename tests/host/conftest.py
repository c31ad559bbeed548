"""Recorded trees of other hosts: one text file each, unpacked into a directory for `--root`.

A line `@ PATH [mode=OCTAL] [group=GID] [link=TARGET]` starts a file; the lines after it are its content. A path that
ends in .gz is compressed; `\\0` stands for a NUL. Device nodes are ordinary files: only their names and modes count.
"""

from __future__ import annotations

import gzip
import os
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

import kvmkit as kvmkit_package

TREES = Path(__file__).parent / "trees"


def unpack_tree(source: Path, root: Path) -> None:
    path: Path | None = None
    options: dict[str, str] = {}
    lines: list[str] = []

    def finish() -> None:
        if path is None:
            return
        path.parent.mkdir(parents=True, exist_ok=True)
        if "link" in options:
            path.symlink_to(options["link"])
            return
        content = "".join(line + "\n" for line in lines).replace("\\0", "\0").encode()
        path.write_bytes(gzip.compress(content) if path.suffix == ".gz" else content)
        path.chmod(int(options.get("mode", "644"), 8))
        if "group" in options and os.geteuid() == 0:
            os.chown(path, 0, int(options["group"]))

    for line in source.read_text().splitlines():
        if line.startswith("@ "):
            finish()
            name, *rest = line[2:].split(" ")
            path, lines = root / name.lstrip("/"), []
            options = dict(word.partition("=")[::2] for word in rest)
        elif path is not None:
            lines.append(line)
    finish()


@pytest.fixture
def tree(tmp_path: Path) -> Callable[[str], Path]:
    """tree('intel') -> the directory that tests/host/trees/intel.tree was unpacked into, new for each test."""

    def unpack(name: str) -> Path:
        root = tmp_path / name
        if not root.exists():
            root.mkdir()
            unpack_tree(TREES / f"{name}.tree", root)
        return root

    return unpack


def snapshot(root: Path) -> dict[str, tuple[int, bytes]]:
    """Every file's mode and content, and every directory, to compare before and after."""
    found: dict[str, tuple[int, bytes]] = {}
    for directory, names, files in os.walk(root):
        here = Path(directory)
        for name in [*names, *files]:
            path = here / name
            mark = b"link" if path.is_symlink() else b"dir" if path.is_dir() else path.read_bytes()
            if path not in (root / "var/lib", root / "var"):
                found[str(path.relative_to(root))] = (path.lstat().st_mode, mark)
    return found


@pytest.fixture
def snapshot_of() -> Callable[[Path], dict[str, tuple[int, bytes]]]:
    return snapshot


# Another user may not be able to read this interpreter's files: all that is needed is imported before the user changes.
AS_USER = """
import importlib, os, pkgutil, sys
import kvmkit.cli.main, kvmkit.host, kvmkit.manager.listing, kvmkit.paths, msgspec, rich.console, rich.text, uuid
import kvmkit.accel.choose, kvmkit.accel.kvm.system, kvmkit.accel.kvm.measure, kvmkit.accel.tcg
for module in pkgutil.walk_packages(kvmkit.host.__path__, "kvmkit.host."):
    importlib.import_module(module.name)
importlib.import_module(f"kvmkit.cli.{sys.argv[1]}")
uid = int(os.environ["KVMKIT_TEST_UID"])
os.setgroups([]), os.setgid(uid), os.setuid(uid)
sys.exit(kvmkit.cli.main.run(sys.argv[1:]))
"""

Done = subprocess.CompletedProcess[str]


def run_verb(*words: str, user: int | None = None, prefix: tuple[str, ...] = ()) -> Done:
    """`kvmkit WORDS` in a process of its own, as the user of that number, behind a command such as nsenter."""
    how = ("-m", "kvmkit") if user is None else ("-c", AS_USER)
    command = [*prefix, sys.executable, *how, *words]
    environment = {**os.environ, "PYTHONPATH": str(Path(kvmkit_package.__file__).parent.parent)}
    if user is not None:
        environment |= {"KVMKIT_TEST_UID": str(user), "HOME": "/nonexistent"}
    return subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment)


@pytest.fixture
def kvmkit() -> Callable[..., Done]:
    return run_verb
