"""Get kvm-unit-tests and build its x86-64 guests."""

from __future__ import annotations

import hashlib
import shutil
import subprocess
from pathlib import Path

from kvmkit.errors import BadInput, HostError

URL = "https://gitlab.com/kvm-unit-tests/kvm-unit-tests.git"
COMMIT = "1da1819e49fc4938985edca67df669099b4c87a7"
"""What the verdicts in docs/kvm-unit-tests.md are of."""


def build(source: str, commit: str, cache: Path) -> Path:
    """The directory of the built .flat files of `commit`, cloned from `source` if not there yet."""
    name = hashlib.sha256(f"{source}\n{commit}".encode()).hexdigest()[:12]
    target = cache / "kvm-unit-tests" / name
    if target.is_dir():
        return target / "x86"
    missing = [tool for tool in ("git", "gcc", "make") if shutil.which(tool) is None]
    if missing:
        raise HostError(f"building kvm-unit-tests needs packages: apt-get install {' '.join(missing)}")
    work = target.with_name(f"{name}.building")
    shutil.rmtree(work, ignore_errors=True)
    work.parent.mkdir(parents=True, exist_ok=True)
    try:
        step(["git", "clone", "--quiet", "--no-checkout", source, str(work)], Path.cwd(), "clone")
        step(["git", "checkout", "--quiet", commit], work, "check out")
        step(["./configure", "--arch=x86_64"], work, "configure")
        step(["make", "-j2"], work, "build")
        work.rename(target)
    finally:
        shutil.rmtree(work, ignore_errors=True)
    return target / "x86"


def step(command: list[str], where: Path, what: str) -> None:
    done = subprocess.run(command, cwd=where, capture_output=True, text=True, stdin=subprocess.DEVNULL, check=False)
    if done.returncode:
        last = (done.stderr.strip() or done.stdout.strip()).splitlines()[-1:]
        raise HostError(f"could not {what} kvm-unit-tests: {' '.join(last)}")


def check_built(directory: Path) -> None:
    """Refuse a directory that holds no .flat files."""
    if not any(directory.glob("*.flat")):
        raise BadInput(f"{directory}: no .flat files; build kvm-unit-tests there or leave --built out")
