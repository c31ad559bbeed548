"""The default image, of the user's own cache, and VMs of it in a home of their own."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest
from tests.vms.conftest import Kvmkit, caller, machines_of


@pytest.fixture(scope="session")
def debian() -> Path:
    """The directory of the image `debian`, built here if it is not yet."""
    from kvmkit.errors import HostError
    from kvmkit.guest import images

    if not shutil.which("mmdebstrap"):
        pytest.skip("mmdebstrap is not installed")
    try:
        image = images.ensure("debian")
    except HostError as error:
        pytest.skip(f"the image debian can't be built here: {error}")
    assert image.root is not None
    return image.root.parent


@pytest.fixture(scope="session")
def home(debian: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Path]:
    home = tmp_path_factory.mktemp("images-home")
    with machines_of(home):
        yield home


@pytest.fixture(scope="session")
def kvmkit(home: Path) -> Kvmkit:
    return caller(home)
