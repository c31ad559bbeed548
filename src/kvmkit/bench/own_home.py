"""A home of its own for VMs that are measured: the user's images in it, and none of their VMs."""

from __future__ import annotations

import os
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kvmkit.errors import KvmkitError
from kvmkit.manager import control, create, home, spawn
from kvmkit.manager.home import Home
from kvmkit.manager.spec import VmSpec

READY_SECONDS = 300.0


@contextmanager
def own_home() -> Iterator[Path]:
    """KVMKIT_HOME is a new directory inside; its VMs are ended and removed when it ends."""
    from kvmkit.paths import cache_dir

    images = cache_dir() / "images"
    before = os.environ.get("KVMKIT_HOME")
    with tempfile.TemporaryDirectory(prefix="kvmkit-bench-") as path:
        (Path(path) / "cache").mkdir()
        os.symlink(images, Path(path) / "cache" / "images")
        os.environ["KVMKIT_HOME"] = path
        try:
            yield Path(path)
        finally:
            for name in home.listing():
                with home.open_home(name) as each:
                    try:
                        control.destroy(each)
                        each.remove()
                    except KvmkitError:
                        pass  # the directory goes anyway
            if before is None:
                del os.environ["KVMKIT_HOME"]
            else:
                os.environ["KVMKIT_HOME"] = before


def started(accel: str, image: str, memory: int = 512 << 20) -> Home:
    """A VM without a network that runs in the background and whose agent has answered. `memory` in bytes.

    Raises KvmkitError; nothing is left then.
    """
    given = {"accel": accel, "image": image, "memory": f"{memory // 1024}K", "networks": []}
    spec = msgspec.convert(given, VmSpec).resolved()
    spec.machine()  # an image that is not there is built now
    made = create.make(spec)
    try:
        spawn.spawn(made)
        control.ask(made, "ready", timeout=READY_SECONDS)
    except BaseException:
        control.destroy(made)
        made.remove()
        made.close()
        raise
    return made
