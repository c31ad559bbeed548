"""What a VM has in its own directory: the layer above its image, UEFI's variables, and cloud-init's seed."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

if TYPE_CHECKING:
    from kvmkit.machine import MachineSpec
    from kvmkit.manager.spec import VmSpec

NVRAM = "nvram.fd"


def with_own_files(machine: MachineSpec, spec: VmSpec, directory: Path, *, temporary: bool) -> MachineSpec:
    """The machine with them, made if they are not there yet. `temporary`: what goes with the VM may be in memory.

    Raises BadInput or HostError, in a line.
    """
    if spec.root_size or not temporary:
        from kvmkit.manager import rootdisk

        machine = rootdisk.with_layer(machine, directory, spec.root_bytes())
    if machine.uefi and not machine.nvram and not temporary:
        machine = msgspec.structs.replace(machine, nvram=str(directory / NVRAM))
    if spec.user_data:
        from kvmkit.manager import seed

        machine = seed.attached(machine, directory, spec.user_data)
    return machine
