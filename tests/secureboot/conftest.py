"""The host's own OVMF variable stores."""

from __future__ import annotations

from pathlib import Path

import pytest

OVMF = Path("/usr/share/OVMF")


def image(name: str) -> bytes:
    path = OVMF / name
    if not path.exists():
        pytest.skip(f"{path} is not there: the package ovmf is not installed")
    return path.read_bytes()


@pytest.fixture(params=["OVMF_VARS_4M.fd", "OVMF_VARS_4M.ms.fd", "OVMF_VARS.fd"])
def each(request: pytest.FixtureRequest) -> bytes:
    """An empty store, one that its distribution enrolled keys in, and an empty one of the older size."""
    return image(request.param)


@pytest.fixture
def empty() -> bytes:
    return image("OVMF_VARS_4M.fd")


@pytest.fixture
def enrolled() -> bytes:
    """Debian's, with Debian's platform key and Microsoft's others."""
    return image("OVMF_VARS_4M.ms.fd")
