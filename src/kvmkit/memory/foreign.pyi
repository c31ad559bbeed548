from collections.abc import Sequence

from .ram import GuestMemory

class ForeignMemory(GuestMemory):
    def __init__(self, size: int) -> None: ...
    def map(self, regions: Sequence[tuple[int, int, int, int]]) -> None: ...
