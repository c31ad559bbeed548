"""The project's source: cloned and built in the cache directory; nothing of it is kept in this repository."""

from __future__ import annotations

import hashlib
import os
import shutil
import subprocess
from pathlib import Path

from kvmkit.errors import HostError

URL = "https://gitlab.com/kvm-unit-tests/kvm-unit-tests.git"
BUILD_SECONDS = 900


def built(source: str) -> Path:
    """The directory with the .flat files of `source` (a URL or a directory git can clone), built at most once."""
    base = os.environ.get("XDG_CACHE_HOME") or os.path.join(os.path.expanduser("~"), ".cache")
    cache = Path(base) / "kvmkit" / "kvm-unit-tests"
    target = cache / hashlib.sha256(source.encode()).hexdigest()[:16]
    if (target / "x86" / "msr.flat").exists():
        return target / "x86"
    cache.mkdir(parents=True, exist_ok=True)
    work = cache / f"{target.name}.{os.getpid()}"
    try:
        step(["git", "clone", "--quiet", "--depth=1", clonable(source), str(work)], cache)
        step(["./configure", "--arch=x86_64"], work)
        step(["make", f"-j{os.cpu_count() or 1}"], work)
        shutil.rmtree(target, ignore_errors=True)
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / "x86"


def clonable(source: str) -> str:
    """git takes --depth for a local directory only as a URL."""
    return Path(source).resolve().as_uri() if Path(source).exists() else source


def step(command: list[str], where: Path) -> None:
    try:
        done = subprocess.run(command, cwd=where, capture_output=True, text=True, timeout=BUILD_SECONDS, check=False)
    except FileNotFoundError:
        raise HostError(f"{command[0]} is not installed: apt-get install git gcc make") from None
    except subprocess.TimeoutExpired:
        raise HostError(f"{' '.join(command)} took longer than {BUILD_SECONDS} s") from None
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:] or ["it said nothing"]
        raise HostError(f"{' '.join(command)} failed: {last[0]}")
