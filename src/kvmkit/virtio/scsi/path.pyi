from collections.abc import Callable, Sequence
from typing import TypeVar

from kvmkit.memory import GuestMemory
from kvmkit.virtio.device import VirtioDevice

from .target import Targets

T = TypeVar("T")

class ScsiPath(VirtioDevice):
    targets: Targets
    uses_uring: bool
    requests_in_python: int
    waiting: int
    def __init__(
        self,
        memory: GuestMemory,
        targets: Targets,
        most_transfer: int,
        *,
        uring: bool = True,
        kind: int,
        queues: Sequence[int],
        name: str,
        driver: str = "",
        features: int = 0,
        config: bytes = b"",
        lanes: list[list[int]] | None = None,
        log: Callable[[str], None] | None = None,
    ) -> None: ...
    def set_sizes(self, sense_bytes: int, cdb_bytes: int) -> None: ...
    def command(self, data: bytes, room: int) -> bytes: ...
    def still(self, action: Callable[[], T]) -> T: ...
    def finish_all(self) -> None: ...
    def in_flight(self, target: int, lun: int, tag: int | None) -> bool: ...
    def limit_unit(
        self, target: int, lun: int, bytes: float, byte_burst: float, operations: float, operation_burst: float
    ) -> None: ...
    def cool(self, target: int, lun: int) -> None: ...
    def heat(self, target: int, lun: int) -> None: ...
