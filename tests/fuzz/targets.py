"""The targets, by name: each a function of bytes that raises where something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmkit.testing import MmioDriver, PciDriver

from . import devices, formats
from .queues import packed, split

Target = Callable[[bytes], None]
_benches: dict[str, devices.Bench] = {}


def bench(
    name: str, make: Callable[..., devices.Bench], kind: type[MmioDriver] = MmioDriver, **options: Any
) -> devices.Bench:
    if name not in _benches:
        _benches[name] = make(kind, **options)
    return _benches[name]


def on(name: str, make: Callable[..., devices.Bench], kind: type[MmioDriver], **options: Any) -> Target:
    return lambda data: bench(name, make, kind, **options).run(data)


TARGETS: dict[str, Target] = {
    "queue-split": split,
    "queue-packed": packed,
    "blk-mmio": on("blk-mmio", devices.blk, MmioDriver),
    "blk-pci": on("blk-pci", devices.blk, PciDriver, uring=False),
    "scsi-mmio": on("scsi-mmio", devices.scsi, MmioDriver),
    "scsi-pci": on("scsi-pci", devices.scsi, PciDriver, uring=False),
    "rng-mmio": on("rng-mmio", devices.rng, MmioDriver),
    "rng-pci": on("rng-pci", devices.rng, PciDriver),
    "net-mmio": on("net-mmio", devices.net, MmioDriver),
    "vsock-mmio": on("vsock-mmio", devices.vsock, MmioDriver),
    "states": formats.states,
    "agent": formats.agent,
    "boot": formats.boot,
}


def close() -> None:
    """End the threads of what was made."""
    for made in _benches.values():
        made.driver.close() if not isinstance(made.driver, PciDriver) else made.driver.pci.close()
        made.device.close()
    _benches.clear()
