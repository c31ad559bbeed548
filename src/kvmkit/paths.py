"""Where kvmkit keeps things: the XDG base directories, or everything below $KVMKIT_HOME when that is set.

Source: the XDG Base Directory Specification, version 0.8. A relative path in one of its variables is ignored, as it
asks. Each function makes the directory, for this user alone, and raises HostError when it can't.
"""

from __future__ import annotations

import os
import stat
import sys
from pathlib import Path

from kvmkit.errors import HostError


def program() -> list[str]:
    """The command that is kvmkit, as ./kvmkit has it: by its file, not by -m, which would load more of Python first."""
    return [sys.executable, "-P", str(Path(__file__).with_name("__main__.py"))]


def cache_dir() -> Path:
    """What can be made again: unpacked kernels, guest images."""
    home = _home()
    return _made(home / "cache" if home else _base("XDG_CACHE_HOME", ".cache") / "kvmkit")


def data_dir() -> Path:
    """What can't be made again: machines, disks, keys."""
    home = _home()
    return _made(home / "data" if home else _base("XDG_DATA_HOME", ".local/share") / "kvmkit")


def runtime_dir() -> Path:
    """What ends with the login: control sockets. Where the session offers no directory, one below /tmp."""
    home = _home()
    if home:
        return _made(home / "run")
    given = os.environ.get("XDG_RUNTIME_DIR", "")
    if os.path.isabs(given):
        return _made(Path(given) / "kvmkit")
    path = _made(Path(f"/tmp/kvmkit-{os.getuid()}"))
    # Anybody can make names in /tmp, so a directory found there must be shown to be ours.
    found = path.lstat()
    if not stat.S_ISDIR(found.st_mode) or found.st_uid != os.getuid() or found.st_mode & 0o077:
        raise HostError(f"{path} is not a directory of this user alone: remove it, or set XDG_RUNTIME_DIR")
    return path


def _home() -> Path | None:
    given = os.environ.get("KVMKIT_HOME", "")
    return Path(given).absolute() if given else None


def _base(variable: str, default: str) -> Path:
    given = os.environ.get(variable, "")
    if os.path.isabs(given):
        return Path(given)
    try:
        return Path.home() / default
    except RuntimeError as error:
        raise HostError("this user has no home directory: set KVMKIT_HOME") from error


def _made(path: Path) -> Path:
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise HostError(f"can't make {path}: {error.strerror}; set KVMKIT_HOME to a directory you own") from error
    return path
