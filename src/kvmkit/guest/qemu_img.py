"""Disk images of other programs, by qemu-img."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path
from typing import Any

import msgspec

from kvmkit.errors import BadInput, HostError, KvmkitError
from kvmkit.packages import how

FORMATS = ("raw", "qcow2", "vmdk", "vhdx", "vpc", "vdi", "qed")
"""That may be read: each is one file, and leads to no other."""


def call(*words: str, good: tuple[int, ...] = (0,)) -> str:
    """Run it, and return what it prints. HostError: it is not installed. KvmkitError: what it says of its failure.

    `good`: the exit statuses that are none.
    """
    program = shutil.which("qemu-img")
    if program is None:
        raise HostError(f"this needs qemu-img, which is not installed: {how('qemu-img')}")
    done = subprocess.run([program, *words], stdin=subprocess.DEVNULL, capture_output=True, text=True, check=False)
    if done.returncode not in good:
        said = [line.removeprefix("qemu-img: ") for line in done.stderr.splitlines() if line.strip()]
        raise KvmkitError(f"qemu-img {words[0]}: {said[-1] if said else f'status {done.returncode}'}")
    return done.stdout


def info(path: Path, form: str = "", *, shared: bool = False) -> dict[str, Any]:
    """What it says of an image; `shared`: also of one that is being written. BadInput: no such file."""
    if not path.is_file():
        raise BadInput(f"{path}: {'not a file' if path.exists() else 'no such file'}")
    found = msgspec.json.decode(
        call("info", "--output=json", *(["-U"] if shared else []), *(["-f", form] if form else []), str(path))
    )
    if not isinstance(found, dict):
        raise KvmkitError("qemu-img info: not what was expected")
    return found


def check_alone(path: Path, found: dict[str, Any]) -> None:
    """BadInput: the image's contents are, in part, another file's: whoever made it would choose which we read."""
    data = (found.get("format-specific") or {}).get("data") or {}
    other = found.get("backing-filename") or data.get("data-file") or ""
    if not other and isinstance(data.get("extents"), list) and len(data["extents"]) > 1:
        other = "several files"
    if other:
        raise BadInput(f"{path}: is but a part of an image, the rest is in {other}; make it whole: qemu-img convert")
    if found.get("encrypted"):
        raise BadInput(f"{path}: is encrypted; decrypt it with qemu-img convert")


def to_raw(source: Path, target: Path, form: str = "") -> str:
    """Convert to a sparse raw file. Returns the source's format. BadInput: it can't be read."""
    found = info(source, form)
    known = form or str(found.get("format"))
    if known not in FORMATS:
        raise BadInput(f"{source}: is {known}; known are {', '.join(FORMATS)}")
    check_alone(source, found)
    if known in ("qcow2", "vhdx", "vmdk", "vdi", "qed"):  # convert takes what is missing for zeros
        call("check", "-q", "-f", known, str(source), good=(0, 3, 63))  # clusters lost; no check of that format
    call("convert", "-f", known, "-O", "raw", "-S", "4k", str(source), str(target))
    return known
