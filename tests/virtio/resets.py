"""A reset in the midst of work, by either transport."""

from __future__ import annotations

import time
from typing import Protocol

from kvmkit.memory import GuestMemory

MARK = b"nobody writes here after a reset " * 124


class Ring(Protocol):
    def add(self, chain: list[tuple[int, int, bool]]) -> object: ...


class Driver(Protocol):
    buffers: int
    queues: list[Ring]

    def start(self) -> object: ...
    def ring(self, queue: int) -> object: ...
    def reset(self) -> object: ...


def reset_in_the_midst(driver: Driver, memory: GuestMemory, rounds: int) -> None:
    """Start a device that fills buffers, ask for many, and reset it at once. It writes nothing from then on."""
    written = 0
    for turn in range(rounds):
        driver.start()
        memory.write(driver.buffers, bytes(4096))
        for _ in range(8):
            driver.queues[0].add([(driver.buffers, 4096, True)])
        driver.ring(0)
        if turn % 2:
            time.sleep(0.001)
        driver.reset()
        written += memory.read(driver.buffers, 4096) != bytes(4096)
        memory.write(driver.buffers, MARK)
        time.sleep(0.001)
        assert memory.read(driver.buffers, len(MARK)) == MARK
    assert written, "it never came to work: nothing was tried"
