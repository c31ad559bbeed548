"""What a VM has in its own directory: the layer above its image, UEFI's variables, and cloud-init's seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from kvmkit import firmware
from kvmkit.errors import BadInput
from kvmkit.manager import wire

if TYPE_CHECKING:
    from kvmkit.machine import MachineSpec
    from kvmkit.manager.home import Home
    from kvmkit.manager.spec import VmSpec

NVRAM = "nvram.fd"


def with_own_files(machine: MachineSpec, spec: VmSpec, home: Home, *, temporary: bool) -> MachineSpec:
    """The machine with them, made if they are not there yet. `temporary`: what goes with the VM may be in memory.

    Raises BadInput or HostError, in a line.
    """
    directory = home.path
    if spec.root_size or not temporary:
        from kvmkit.manager import rootdisk

        machine = rootdisk.with_layer(machine, directory, spec.root_bytes())
    if machine.uefi and not machine.nvram and not temporary:
        machine = msgspec.structs.replace(machine, nvram=str(directory / NVRAM))
    if spec.user_data:
        from kvmkit.manager import seed

        machine = seed.attached(machine, directory, spec.user_data)
    return _by_descriptor(machine, home)


def _by_descriptor(machine: MachineSpec, home: Home) -> MachineSpec:
    """The same with what is in the directory found by its descriptor: a reset opens it again, and the VM may have
    another name by then."""

    inside = f"{home.path}/"

    def found(path: str) -> str:
        return wire.address(home.directory, path.removeprefix(inside)) if path.startswith(inside) else path

    return msgspec.structs.replace(
        machine,
        kernel=found(machine.kernel),
        initrd=tuple(found(path) for path in machine.initrd),
        disks=tuple(msgspec.structs.replace(disk, path=found(disk.path)) for disk in machine.disks),
        nvram=found(machine.nvram),
    )


def variables(home: Home) -> Path:
    """The file of a VM's UEFI variables; of one that never ran, made as its start would. BadInput: it has no UEFI."""
    from kvmkit.boot import uefi

    spec = home.spec()
    if not firmware.is_uefi(spec.firmware):
        raise BadInput(f"{home.name}: has no UEFI variables, as it was made without --firmware uefi")
    path = Path(spec.nvram) if spec.nvram else home.path / NVRAM
    if not path.exists():
        template = uefi.read(spec.firmware, secure_boot=spec.secure_boot, template=spec.nvram_template)
        uefi.Variables(str(path), template.variables).close()
    return path
