"""Which kernel modules a guest's agent loads for which device: the tables that agent/drivers.c reads."""

from __future__ import annotations

from collections.abc import Iterable

from kvmkit.guest.modules import ModuleSet

TABLE = "usr/lib/kvmkit/drivers"
ROOT = ("erofs", "overlay")
"""The file systems that a root disk is made of."""
DISKS = ("virtio_mmio", "virtio_pci", "virtio_blk")
"""What finds it."""
DEVICES = tuple("""
    virtio_mmio virtio_pci virtio_blk virtio_net virtio_console virtio_balloon virtio_rng virtio_input virtio_mem
    virtio_pmem virtio_scsi virtiofs vmw_vsock_virtio_transport
""".split())  # fmt: skip
"""What is loaded from it, for the devices that are there."""

_BUSES = ("acpi:LNRO0005:", "pci:v00001AF4", "virtio:")
_BEHIND = {
    "virtio_scsi": ["sd_mod", "sr_mod"],
    "virtio_pmem": ["nd_pmem"],
    "virtio_input": ["evdev"],
}
"""What drives that which stands behind a device; it announces itself too late for the agent to look."""


def drivers(modules: ModuleSet, names: Iterable[str], directory: str) -> str:
    """The agent's table: for each device that may be there, the start of its modalias and what to load, in order."""
    lines = []
    for name in names:
        paths: dict[str, None] = {}
        for each in [name, *_BEHIND.get(name, [])]:
            if each in modules.files:
                paths |= dict.fromkeys(modules.in_order(each))
        for alias in modules.aliases(name):
            prefix = alias.replace("acpi*:", "acpi:").partition("*")[0]
            if prefix.startswith(_BUSES):
                lines.append(" ".join([prefix, *(f"{directory}/{path}" for path in paths)]))
    return "\n".join([*lines, ""])


def root_drivers(modules: ModuleSet, directory: str) -> str:
    """The table of what mounts the root disk."""
    paths = [path for name in ROOT if name in modules.files for path in modules.in_order(name)]
    line = " ".join(["root:", *(f"{directory}/{path}" for path in dict.fromkeys(paths))])
    return f"{line}\n{drivers(modules, [name for name in DISKS if name in modules.files], directory)}"
