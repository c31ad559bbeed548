from collections.abc import Callable

from kvmkit.block.file import DiskFile
from kvmkit.memory import GuestMemory

from .device import VirtioDevice

KIND: int
DRIVER: str
SECTOR: int
SEG_MAX: int
RO: int
BLK_SIZE: int
FLUSH: int
TOPOLOGY: int
CONFIG_WCE: int
MQ: int
DISCARD: int
WRITE_ZEROES: int

class Blk(VirtioDevice):
    disk: DiskFile
    size: int
    errors: int
    def __init__(
        self,
        memory: GuestMemory,
        disk: DiskFile,
        *,
        name: str = "disk",
        serial: str = "",
        queues: int = 1,
        uring: bool = True,
        log: Callable[[str], None] | None = None,
    ) -> None: ...
    @property
    def uses_uring(self) -> bool: ...
    def resize(self) -> int: ...
