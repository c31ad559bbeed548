from collections.abc import Callable, Sequence

from kvmkit.memory import GuestMemory

from .device import VirtioDevice

KIND: int
DRIVER: str
SIZE: int
MULTIPORT: int
MOST_PORTS: int
CONSOLE: str

class Console(VirtioDevice):
    count: int
    paths: list[str]
    def __init__(
        self,
        memory: GuestMemory,
        ports: Sequence[tuple[str, str]],
        *,
        name: str = "console",
        log: Callable[[str], None] | None = None,
    ) -> None: ...
    def resize(self, columns: int, rows: int) -> None: ...
    def connected(self) -> list[bool]: ...
