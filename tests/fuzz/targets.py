"""The targets, by name: each a function of bytes that raises where something is wrong."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from kvmkit.testing import MmioDriver, PciDriver

from . import devices, formats, kinds, peers, platform
from .bench import Bench
from .queues import packed, split

Target = Callable[[bytes], None]
_benches: dict[tuple[str, type[MmioDriver]], Bench] = {}


def bench(name: str, kind: type[MmioDriver]) -> Bench:
    """The device of that name on that transport; made once."""
    key = name, kind
    if key not in _benches:
        _benches[key] = DEVICES[name](kind)
    return _benches[key]


def on(name: str) -> Target:
    """The first byte says by which transport; the driver's ring format is one of the bench's own choices."""

    def run(data: bytes) -> None:
        kind = PciDriver if data[:1] and data[0] & 1 else MmioDriver
        bench(name, kind).run(data[1:])

    return run


DEVICES: dict[str, Callable[[Any], Bench]] = {
    "net": devices.net,
    "blk": devices.blk,
    "scsi": devices.scsi,
    "console": kinds.console,
    "balloon": kinds.balloon,
    "vsock": devices.vsock,
    "rng": devices.rng,
    "input": kinds.keyboard,
    "pmem": kinds.pmem,
    "relay": kinds.relay,
    "pci": lambda kind: platform.pci(),
}

TARGETS: dict[str, Target] = {name: on(name) for name in DEVICES} | {
    "queue-split": split,
    "queue-packed": packed,
    "vhost-backend": peers.backend,
    "vhost-frontend": peers.frontend,
    "display": peers.display,
    "switch": peers.switch,
    "ports": platform.ports,
    "chips": platform.chips,
    "fw-cfg": platform.fw_cfg,
    "states": formats.states,
    "agent": formats.agent,
    "qga": peers.qga,
    "boot": formats.boot,
}


def close() -> None:
    """End the threads of what was made."""
    for made in _benches.values():
        made.driver.close() if not isinstance(made.driver, PciDriver) else made.driver.pci.close()
        made.device.close()
    _benches.clear()
    peers.close()
