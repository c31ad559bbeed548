"""Fixtures of the tests that run inside the KVM test host; anywhere else they are skipped."""

from __future__ import annotations

import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from .linux import Linux

HERE = Path(__file__).parent
OUTSIDE = "only in the KVM test host: python -m tests.kvmhost"


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    # Those that reload KVM's modules come first, while no shared guest runs.
    items.sort(key=lambda item: item.path != HERE / "test_host.py")
    for item in items:
        if item.path.parent == HERE:
            item.add_marker(pytest.mark.kvmhost)
            if "KVMKIT_KVMHOST" not in os.environ:
                item.add_marker(pytest.mark.skip(reason=OUTSIDE))


@pytest.fixture(scope="session")
def linux() -> Iterator[Linux]:
    """A Linux with one vCPU that tests share: they leave it running."""
    with Linux() as guest:
        yield guest
