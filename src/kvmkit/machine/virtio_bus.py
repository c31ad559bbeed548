"""How the guest reaches a board's virtio devices: pages of registers that ACPI describes, or slots of the PCI bus.

A device does not know which.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Protocol

from kvmkit.bus import AddressSpace, pc
from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.accel import VirtualMachine
    from kvmkit.boot.acpi import MmioDevice
    from kvmkit.pci import HostBridge
    from kvmkit.virtio.device import VirtioDevice


class Transport(Protocol):
    def close(self) -> None: ...


class VirtioBus:
    """The virtio devices of one board. With `pci` they are on that bus."""

    def __init__(self, vm: VirtualMachine, mmio: AddressSpace, pci: HostBridge | None) -> None:
        self._vm, self._mmio, self._pci = vm, mmio, pci
        self.devices: list[VirtioDevice] = []
        self._transports: list[Transport] = []

    def add(self, device: VirtioDevice) -> None:
        """Put it where the guest finds it; it is the bus's to close from here on. Raises BadInput: there is no room."""
        self.devices.append(device)
        if self._pci is not None:
            from kvmkit.virtio.pci import PciTransport

            self._transports.append(PciTransport(device, self._pci))
            return
        from kvmkit.virtio.mmio import SIZE, MmioTransport

        number = len(self._transports)
        if number >= pc.VIRTIO_MMIO_MOST:
            raise BadInput(f"{number + 1} virtio devices: {pc.VIRTIO_MMIO_MOST} can be, or 31 with the transport pci")
        base = pc.VIRTIO_MMIO + SIZE * number
        transport = MmioTransport(device, self._vm, base, pc.VIRTIO_MMIO_IRQS[number % len(pc.VIRTIO_MMIO_IRQS)])
        self._transports.append(transport)
        self._mmio.add(base, SIZE, transport)

    def described(self) -> Sequence[MmioDevice]:
        """What ACPI must say of them; nothing where the guest finds them by itself."""
        if self._pci is not None or not self.devices:
            return ()
        from kvmkit.boot.acpi import MmioDevice
        from kvmkit.virtio.mmio import SIZE, MmioTransport

        pages = [transport for transport in self._transports if isinstance(transport, MmioTransport)]
        return [MmioDevice(number, page.base, SIZE, page.gsi) for number, page in enumerate(pages)]

    def hold(self) -> None:
        """Come back when no device does anything."""
        for device in self.devices:
            device.hold()

    def release(self) -> None:
        for device in self.devices:
            device.release()

    def close(self) -> None:
        """Before the VM; no vCPU is running."""
        for transport in self._transports:
            transport.close()
        for device in self.devices:
            device.close()
        self._transports, self.devices = [], []
