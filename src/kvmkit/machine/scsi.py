"""The board's SCSI adapter: its units made of files, and their coming and going while the guest runs."""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmkit.block.file import DiskFile
from kvmkit.errors import BadInput
from kvmkit.virtio.scsi.cdrom import CdRom
from kvmkit.virtio.scsi.device import Scsi
from kvmkit.virtio.scsi.disk import Disk
from kvmkit.virtio.scsi.medium import FileMedium
from kvmkit.virtio.scsi.target import MOST_TARGETS, Targets

if TYPE_CHECKING:
    from kvmkit.machine.limits import Limits
    from kvmkit.machine.spec import ScsiDisk
    from kvmkit.memory import GuestMemory


class ScsiAdapter:
    """`device` and the files of its units, each at its own target as LUN 0. Any thread may call, one at a time."""

    def __init__(
        self, memory: GuestMemory, units: tuple[ScsiDisk, ...], log: Callable[[str], None] | None, queues: int = 1
    ) -> None:
        self._media: dict[int, FileMedium] = {}
        targets = Targets()
        try:
            for number, unit in enumerate(units):
                targets.add(number, 0, self._make(number, unit))
            self.device = Scsi(memory, targets, queues=queues, log=log, owned=(self._close,))
            for number, unit in enumerate(units):
                self.limit(number, unit)
        except BaseException:
            self._close()
            raise

    def _make(self, target: int, unit: ScsiDisk) -> Disk | CdRom:
        medium = self._media[target] = FileMedium(DiskFile(unit.path, readonly=unit.readonly or unit.cdrom))
        serial = unit.serial or f"kvmkit-scsi{target}"
        if unit.cdrom:
            return CdRom(medium, serial=serial)
        return Disk(medium, serial=serial, physical_bytes=medium.file.physical)

    def limit(self, target: int, limits: Limits) -> None:
        """Have the unit keep to `limits`, also while it works. Raises BadInput when there is none."""
        if self.device.targets.find(target, 0) is None:
            raise BadInput(f"there is no SCSI device at target {target}")
        self.device.set_unit_limit(
            target,
            0,
            bytes=limits.bps,
            operations=limits.iops,
            byte_burst=limits.bps_burst,
            operation_burst=limits.iops_burst,
        )

    def attach(self, unit: ScsiDisk) -> int:
        """Add a unit, and tell the guest; its target. Raises BadInput."""
        taken = self.device.targets.all()
        target = next((number for number in range(MOST_TARGETS) if (number, 0) not in taken), None)
        if target is None:
            raise BadInput(f"--scsi {unit.path}: the adapter's {MOST_TARGETS} targets are taken")
        self.device.plug(target, 0, self._make(target, unit))
        self.limit(target, unit)
        return target

    def detach(self, target: int) -> None:
        """Take a unit away and close its file, and tell the guest. Raises BadInput when there is none."""
        self.device.unplug(target, 0)
        medium = self._media.pop(target, None)
        if medium is not None:
            medium.close()

    def change_disc(self, target: int, path: str) -> None:
        """Put another disc in a CD-ROM drive, whatever the guest prevents; no path: take it out. Raises BadInput."""
        drive = self.device.targets.find(target, 0)
        if not isinstance(drive, CdRom):
            raise BadInput(f"there is no CD-ROM drive at SCSI target {target}")
        new = FileMedium(DiskFile(path, readonly=True)) if path else None
        self.device.still(lambda: drive.insert(new) if new is not None else drive.remove())
        old = self._media.pop(target, None)
        if new is not None:
            self._media[target] = new
        if old is not None:
            old.close()

    def _close(self) -> None:
        media, self._media = self._media, {}
        for medium in media.values():
            medium.close()
