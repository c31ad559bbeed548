from collections.abc import Callable

from kvmkit.memory import GuestMemory

from .device import VirtioDevice

KIND: int
DRIVER: str
STATS_VQ: int
DEFLATE_ON_OOM: int
FREE_PAGE_HINT: int
PAGE_REPORTING: int

class Balloon(VirtioDevice):
    given_pages: int
    returned_bytes: int
    stats_came: int
    def __init__(
        self, memory: GuestMemory, *, name: str = "balloon", log: Callable[[str], None] | None = None
    ) -> None: ...
    def set_target(self, size: int) -> None: ...
    @property
    def target(self) -> int: ...
    @property
    def given_bytes(self) -> int: ...
    def stats(self) -> dict[str, int]: ...
    def ask_stats(self) -> None: ...
    def reclaim(self) -> bool: ...
