from typing import Any

from kvmkit.accel import VirtualMachine
from kvmkit.bus import Device

from .device import VirtioDevice

SIZE: int
MAGIC: int
VERSION: int
DEVICE_ID: int
VENDOR_ID: int
DEVICE_FEATURES: int
DEVICE_FEATURES_SEL: int
DRIVER_FEATURES: int
DRIVER_FEATURES_SEL: int
QUEUE_SEL: int
QUEUE_NUM_MAX: int
QUEUE_NUM: int
QUEUE_READY: int
QUEUE_NOTIFY: int
INTERRUPT_STATUS: int
INTERRUPT_ACK: int
STATUS: int
QUEUE_DESC: int
QUEUE_DRIVER: int
QUEUE_DEVICE: int
SHM_SEL: int
SHM_LEN: int
SHM_BASE: int
QUEUE_RESET: int
CONFIG_GENERATION: int
CONFIG: int

class MmioTransport(Device):
    device: VirtioDevice
    base: int
    gsi: int
    def __init__(self, device: VirtioDevice, vm: VirtualMachine, base: int, gsi: int) -> None: ...
    def close(self) -> None: ...
    def forget(self) -> None: ...
    def state(self) -> dict[str, Any]: ...
    def restore(self, state: dict[str, Any]) -> None: ...
