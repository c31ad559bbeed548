from collections.abc import Callable

from kvmkit.memory import GuestMemory

from .device import VirtioDevice

KIND: int
DRIVER: str

class Rng(VirtioDevice):
    def __init__(self, memory: GuestMemory, *, name: str = "rng", log: Callable[[str], None] | None = None) -> None: ...
