from collections.abc import Callable
from typing import Any

from kvmkit.memory import GuestMemory
from kvmkit.net.backend import Backend
from kvmkit.net.filter import FrameFilter
from kvmkit.net.policy import FramePolicy

from .device import VirtioDevice

KIND: int
DRIVER: str
CSUM: int
GUEST_CSUM: int
CTRL_GUEST_OFFLOADS: int
MTU: int
MAC: int
GUEST_TSO4: int
GUEST_TSO6: int
GUEST_ECN: int
GUEST_UFO: int
HOST_TSO4: int
HOST_TSO6: int
HOST_ECN: int
HOST_UFO: int
MRG_RXBUF: int
STATUS: int
CTRL_VQ: int
CTRL_RX: int
CTRL_VLAN: int
CTRL_RX_EXTRA: int
GUEST_ANNOUNCE: int
MQ: int
CTRL_MAC_ADDR: int
GUEST_USO4: int
GUEST_USO6: int
HOST_USO: int

class Net(VirtioDevice):
    lost: Callable[[str], None] | None
    def __init__(
        self,
        memory: GuestMemory,
        backend: Backend,
        mac: bytes,
        *,
        name: str = "net",
        mtu: int = 0,
        log: Callable[[str], None] | None = None,
        lost: Callable[[str], None] | None = None,
    ) -> None: ...
    @property
    def backend(self) -> Backend: ...
    @property
    def filter(self) -> FrameFilter: ...
    @property
    def mac(self) -> bytes: ...
    @property
    def mtu(self) -> int: ...
    @property
    def pairs(self) -> int: ...
    @property
    def link(self) -> bool: ...
    def set_link(self, up: bool) -> None: ...
    @property
    def policy(self) -> FramePolicy: ...
    def set_policy(self, policy: FramePolicy) -> None: ...
    def announce(self) -> None: ...
    def replace_backend(self, backend: Backend) -> None: ...
    def counters(self) -> list[dict[str, dict[str, int]]]: ...
    def state(self) -> dict[str, Any]: ...
