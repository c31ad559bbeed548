"""Programs of this machine for a guest: an ext4 image with their files and the libraries they need."""

from __future__ import annotations

import shutil
import subprocess
import tempfile
from pathlib import Path

import pytest

from kvmkit.bench.blk_fio import libraries

WRAPPER = """#!/bin/sh
exec /mnt/lib/{loader} --library-path /mnt/lib /mnt/bin/{name}.real "$@"
"""


def find(name: str) -> str:
    """Its path; the test is skipped where it is not installed."""
    path = shutil.which(name, path="/usr/sbin:/usr/bin:/sbin:/bin")
    if path is None:
        pytest.skip(f"{name} is not installed here")
    return path


def tool_disk(image: Path, *names: str) -> None:
    """Make `image`. A guest mounts it at /mnt (ext4, read-only), and has the programs in /mnt/bin."""
    mke2fs = find("mke2fs")
    with tempfile.TemporaryDirectory() as name:
        tree = Path(name)
        (tree / "bin").mkdir()
        (tree / "lib").mkdir()
        for name in names:
            program = find(name)
            needed = libraries(program)
            for library in needed:
                target = tree / "lib" / library.name
                if not target.exists():
                    shutil.copy(library, target)
            loader = next(library.name for library in needed if library.name.startswith("ld-"))
            shutil.copy(program, tree / "bin" / f"{name}.real")
            wrapper = tree / "bin" / name
            wrapper.write_text(WRAPPER.format(loader=loader, name=name))
            wrapper.chmod(0o755)
        size = sum(path.stat().st_size for path in tree.rglob("*") if path.is_file())
        with image.open("wb") as file:
            file.truncate((size * 5 // 4 + (8 << 20)) // 4096 * 4096)
        subprocess.run([mke2fs, "-q", "-F", "-t", "ext4", "-d", str(tree), str(image)], check=True)
