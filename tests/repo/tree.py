"""The files that belong to this checkout."""

from __future__ import annotations

import os
import subprocess
from functools import cache
from pathlib import Path

ROOT = Path(__file__).parents[2]
_BUILT = {".git", ".venv", "build", "dist", ".mypy_cache", ".ruff_cache", ".pytest_cache", ".hypothesis", "__pycache__"}


@cache
def files() -> tuple[Path, ...]:
    """All that is in git or would be added; without git, all that is not built."""
    command = ["git", "-C", str(ROOT), "ls-files", "-z", "--cached", "--others", "--exclude-standard"]
    try:
        listed = subprocess.run(command, capture_output=True, check=True).stdout.decode().split("\0")
    except (OSError, subprocess.CalledProcessError):
        return tuple(sorted(_walk()))
    return tuple(sorted(path for name in listed if name and (path := ROOT / name).is_file()))


def _walk() -> list[Path]:
    found = []
    for where, directories, names in os.walk(ROOT):
        directories[:] = [name for name in directories if name not in _BUILT and not name.endswith(".egg-info")]
        found += [Path(where) / name for name in names if not name.endswith(".so")]
    return found


def sources(*endings: str) -> list[Path]:
    """The files below src/ with one of these endings."""
    return [path for path in files() if path.is_relative_to(ROOT / "src") and path.suffix in endings]


def text_files() -> dict[str, str]:
    """Name in the checkout -> text, of every file that is text."""
    found = {}
    for path in files():
        try:
            found[str(path.relative_to(ROOT))] = path.read_text()
        except UnicodeDecodeError:
            continue
    return found
