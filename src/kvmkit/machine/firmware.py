"""A machine's firmware: its image in memory, what it is told by fw_cfg, and the flash chip with its variables."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING

from kvmkit.memory import HOLE

if TYPE_CHECKING:
    from kvmkit.boot.acpi import AcpiTables
    from kvmkit.boot.uefi import Variables
    from kvmkit.bus import AddressSpace
    from kvmkit.machine.spec import MachineSpec
    from kvmkit.memory import GuestMemory


class Firmware:
    """As `spec` wants it. Raises BadInput or HostError, in a line, for what can't be used."""

    def __init__(self, spec: MachineSpec) -> None:
        self.uefi = spec.uefi
        self._variables: Variables | None = None
        self._kernel: dict[int, bytes] = {}
        if self.uefi:
            from kvmkit.boot import uefi

            uefi.check_memory(spec.memory)
            if spec.kernel:
                self._kernel = uefi.kernel(spec.kernel, spec.initrd, spec.append, spec.memory)
            found = uefi.read(spec.firmware, secure_boot=spec.secure_boot, template=spec.nvram_template)
            self._variables = uefi.Variables(spec.nvram, found.variables)
            self.code = found.code
            self.low_memory = uefi.BELOW_4_GIB if spec.memory > uefi.BELOW_4_GIB else HOLE
        else:
            from kvmkit.boot import seabios

            self.code = seabios.read(spec.firmware)
            self.low_memory = HOLE

    def load(self, memory: GuestMemory) -> None:
        """Put the image in place, before an engine shows the guest its memory."""
        variables = bytes(self._variables.data) if self._variables is not None else b""
        self._rom = memory.put_rom(variables + self.code)
        if not self.uefi:
            from kvmkit.boot import seabios

            seabios.load(memory, self.code)

    def files(
        self, memory: GuestMemory, tables: Callable[[], AcpiTables], boot_order: Sequence[str]
    ) -> Mapping[str, bytes | Callable[[], bytes]]:
        """What it reads by name; see `kvmkit.boot.firmware.files`."""
        from kvmkit.boot import firmware, seabios

        return {**firmware.files(memory, tables, boot_order), **({} if self.uefi else seabios.FILES)}

    def items(self) -> dict[int, bytes]:
        """What it reads by number: a kernel to start, if the machine has one."""
        return self._kernel

    def add_flash(self, mmio: AddressSpace) -> None:
        if self._variables is None:
            return
        from kvmkit.boot.firmware import FOUR_GIB
        from kvmkit.devices.flash import Flash

        self.flash = Flash(self._variables.data, self._rom)
        mmio.add(FOUR_GIB - len(self._rom), len(self._variables.data), self.flash)

    def close(self) -> None:
        if self._variables is not None:
            self._variables.close()
            self._variables = None
