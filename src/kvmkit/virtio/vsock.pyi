from collections.abc import Callable, Iterable

from kvmkit.memory import GuestMemory

from .device import VirtioDevice

KIND: int
DRIVER: str
HOST_CID: int

class Vsock(VirtioDevice):
    cid: int
    path: bytes
    connections: int
    def __init__(
        self,
        memory: GuestMemory,
        cid: int,
        path: str = "",
        *,
        reserved: Iterable[int] = (),
        name: str = "vsock",
        log: Callable[[str], None] | None = None,
    ) -> None: ...
