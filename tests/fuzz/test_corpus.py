"""Every target, with the inputs that were kept of earlier runs and a few that are made up here. See docs/fuzzing.md."""

from __future__ import annotations

import random
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from .targets import TARGETS, close

CORPUS = Path(__file__).parent / "corpus"
MADE_UP = 60
SECONDS = 1.0
"""After so long no more are made up: what was kept is what counts."""


@pytest.fixture(scope="module", autouse=True)
def closed() -> Iterator[None]:
    yield
    close()


@pytest.mark.parametrize("name", TARGETS)
def test_what_fuzzers_found(name: str) -> None:
    target = TARGETS[name]
    kept = sorted((CORPUS / name).glob("*"))
    assert kept, f"no corpus: python -m tests.fuzz {name} --keep"
    for path in kept:
        target(path.read_bytes())
    generator = random.Random(name)
    end = time.monotonic() + SECONDS
    for _ in range(MADE_UP):
        if time.monotonic() > end:
            break
        target(generator.randbytes(generator.randrange(200)))
