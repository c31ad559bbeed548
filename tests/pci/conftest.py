"""A fresh bus for each test."""

from __future__ import annotations

from collections.abc import Iterator

import pytest
from pci_parts import Bus


@pytest.fixture
def bus() -> Iterator[Bus]:
    bus = Bus()
    yield bus
    bus.close()
