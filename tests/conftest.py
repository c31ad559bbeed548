"""What holds for all tests."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

# Its boot is the shortest, and building it takes seconds; tests of the default say so (tests/images).
os.environ.setdefault("KVMKIT_IMAGE", "tiny")


@pytest.fixture
def open_path(tmp_path: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """`tmp_path`, which others may pass through; pytest's directories are this user's alone. Skipped if it lies below
    another that is."""
    base = tmp_path_factory.getbasetemp()
    for directory in (tmp_path, *tmp_path.parents):
        # pytest makes one above its base, too, unless it is told where that is.
        if directory.is_relative_to(base) or (directory == base.parent and directory.name.startswith("pytest-of-")):
            directory.chmod(directory.stat().st_mode | 0o011)
        elif not directory.stat().st_mode & 0o001:
            pytest.skip(f"an ordinary user can't reach {base}")
    return tmp_path
