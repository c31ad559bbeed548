"""Which kernel modules a guest's agent loads for which device: the tables that agent/root.c reads."""

from __future__ import annotations

from kvmkit.guest.modules import ModuleSet

ROOT = ("erofs", "overlay")
"""What the initramfs loads whatever there is."""
DISKS = ("virtio_mmio", "virtio_pci", "virtio_blk")
"""What it loads for the root disk's device."""
DEVICES = tuple("""
    virtio_mmio virtio_pci virtio_blk virtio_net virtio_console virtio_balloon virtio_rng virtio_input virtio_mem
    virtio_pmem nd_pmem virtio_scsi sd_mod sr_mod virtiofs vmw_vsock_virtio_transport qemu_fw_cfg
""".split())  # fmt: skip
"""What is loaded afterwards, for the devices that are there."""


def table(modules: ModuleSet, names: tuple[str, ...], prefix: str, always: tuple[str, ...] = ()) -> bytes:
    """Lines of `PATTERN FILE ...`; each file below `prefix`."""
    lines = [" ".join(["-", *_files(modules, name, prefix)]) for name in always if name in modules.files]
    for name in names:
        if name in modules.files:
            files = " ".join(_files(modules, name, prefix))
            lines += [f"{alias} {files}" for alias in modules.aliases(name)]
    return "".join(f"{line}\n" for line in lines).encode()


def _files(modules: ModuleSet, name: str, prefix: str) -> list[str]:
    """The files of a module and all that it needs, in the order in which they can be loaded."""
    order: dict[str, None] = {}

    def add(each: str, above: tuple[str, ...]) -> None:
        for need in modules.depends(each):
            if need not in above:
                add(need, (*above, each))
        order[each] = None

    add(name, (name,))
    return [f"{prefix}/{modules.files[each][0]}" for each in order]
