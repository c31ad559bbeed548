"""The board's virtio devices, behind the transport the spec chose: virtio-mmio at fixed places, or slots of PCI."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

from kvmkit.bus import AddressSpace, pc
from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.accel import VirtualMachine
    from kvmkit.boot.acpi import MmioDevice
    from kvmkit.machine.scsi import ScsiAdapter
    from kvmkit.machine.spec import Disk, MachineSpec
    from kvmkit.memory import GuestMemory
    from kvmkit.pci import HostBridge
    from kvmkit.virtio.balloon import Balloon
    from kvmkit.virtio.blk import Blk
    from kvmkit.virtio.console import Console
    from kvmkit.virtio.device import VirtioDevice
    from kvmkit.virtio.input import Input
    from kvmkit.virtio.mmio import MmioTransport
    from kvmkit.virtio.net import Net
    from kvmkit.virtio.pci import PciTransport
    from kvmkit.virtio.vhost_user.device import VhostUserDevice
    from kvmkit.virtio.vsock import Vsock

PCI_DRIVER = "CONFIG_VIRTIO_PCI (virtio_pci)"
MMIO_DRIVER = "CONFIG_VIRTIO_MMIO (virtio_mmio)"


class VirtioDevices:
    """Made before the vCPUs; `close` after them and before the VM. A machine without such devices loads none of it."""

    devices: list[VirtioDevice]
    disks: list[Blk | VhostUserDevice]
    networks: list[Net]
    scsi: ScsiAdapter | None
    """The SCSI adapter, if there is one."""

    def __init__(
        self,
        spec: MachineSpec,
        memory: GuestMemory,
        vm: VirtualMachine,
        mmio: AddressSpace,
        pci: HostBridge | None,
        log: Callable[[str], None] | None,
    ) -> None:
        self.devices = []
        self.disks = []
        self.inputs: list[Input] = []
        self.networks = []
        self._closers: list[Callable[[], None]] = []
        self.scsi = None
        self.vsock: Vsock | None = None
        self.balloon: Balloon | None = None
        self.console: Console | None = None
        self._optional: list[VirtioDevice | None] = []
        self._transports: list[MmioTransport | PciTransport] = []
        self._pci = pci
        self._memory, self._vm, self._mmio, self._log = memory, vm, mmio, log
        try:
            self._add_disks(spec)
            self._add_scsi(spec)
            self._add_networks(spec)
            self._add_pmem(spec)
            self._add_vhost_user(spec)
            if spec.rng:
                from kvmkit.virtio.rng import Rng

                rng = Rng(memory, log=log)
                spec.rng_limits.limit(rng)
                self._add(rng)
            self._add_ports(spec)
            if spec.balloon:
                from kvmkit.virtio.balloon import Balloon

                self.balloon = Balloon(memory, log=log)
                self._add(self.balloon)
            if spec.vsock is not None:  # last: the others keep their places whether it is there or not
                from kvmkit.virtio.vsock import Vsock

                own = spec.vsock
                self.vsock = Vsock(memory, own.cid or 3, own.path, reserved=own.reserved, log=log)
                self._add(self.vsock)
                self._optional.append(self.vsock if own.optional else None)
        except BaseException:
            self.close()
            raise

    def _add_ports(self, spec: MachineSpec) -> None:
        if not spec.console_ports:
            return
        from kvmkit.virtio.console import CONSOLE, Console

        ports = sorted(((one.name, one.path) for one in spec.console_ports), key=lambda port: port[0] != CONSOLE)
        self.console = Console(self._memory, ports, log=self._log)
        self._add(self.console)

    def _add_disks(self, spec: MachineSpec) -> None:
        if not spec.disks:
            return
        from kvmkit.block.file import DiskFile
        from kvmkit.virtio.blk import Blk

        for number, disk in enumerate(spec.disks):
            if disk.served:
                self._add_served_disk(disk, disk.queues or 1)  # its daemon has one thread
                continue
            file = DiskFile(disk.path, readonly=disk.readonly, direct=disk.direct, raw=disk.format == "raw")
            try:
                blk = Blk(
                    self._memory,
                    file,
                    name=f"disk {file.path}",
                    serial=disk.serial or f"kvmkit-{chr(97 + number % 26)}",
                    queues=disk.queues or min(spec.cpus, 8),
                    log=self._log,
                )
                disk.limit(blk)
            except BaseException:
                file.close()
                raise
            self.disks.append(blk)
            self._add(blk)

    def _add_served_disk(self, disk: Disk, queues: int) -> None:
        from kvmkit.block.formats import decide
        from kvmkit.vhost_user import storage
        from kvmkit.virtio.vhost_user.device import VhostUserDevice
        from kvmkit.virtio.vhost_user.kinds import blk

        daemon = storage.make(
            disk.path,
            decide(disk.path, disk.format),
            queues=queues,
            readonly=disk.readonly,
            direct=disk.direct,
            key=disk.key,
            backing=disk.backing,
        )
        name = f"disk {disk.path}"
        device = VhostUserDevice(
            self._memory, blk(queues), name, name=name, queues=queues, daemon=daemon, log=self._log
        )
        disk.limit(device)
        self.disks.append(device)
        self._add(device)

    def _add_scsi(self, spec: MachineSpec) -> None:
        if not spec.scsi:
            return
        from kvmkit.machine.scsi import ScsiAdapter

        self.scsi = ScsiAdapter(self._memory, spec.scsi, self._log, min(spec.cpus, 8))
        self._add(self.scsi.device)

    def _add_networks(self, spec: MachineSpec) -> None:
        if not spec.networks:
            return
        from msgspec.structs import replace

        from kvmkit.machine.networks import connect, default_mac, policy_of
        from kvmkit.net.options import parse_mac
        from kvmkit.virtio.net import Net

        for network in spec.networks:
            mac = network.mac or default_mac()
            connection = connect(replace(network, mac=mac), spec.cpus)
            self._closers.append(connection.close)
            name = f"net {network.kind}{'=' if network.name else ''}{network.name}"
            card = Net(
                self._memory,
                connection.backend,
                parse_mac(mac),
                name=name,
                mtu=network.mtu or connection.mtu,
                log=self._log,
            )
            if network.limited:
                network.limit(card)
            card.set_policy(policy_of(network, spec.policy))
            card.lost = connection.lost(card, self._log)
            self.networks.append(card)
            self._optional.append(card if network.optional else None)
            self._add(card)

    def _add_pmem(self, spec: MachineSpec) -> None:
        for one in spec.pmem:
            from kvmkit.virtio.pmem import Pmem, open_file

            file = open_file(one.path, readonly=one.readonly)
            try:
                pmem = Pmem(self._memory, file, name=f"pmem {one.path}", log=self._log)
            except BaseException:
                file.close()
                raise
            self._add(pmem)
        for what in spec.input:
            from kvmkit.virtio.input import Input

            self.inputs.append(Input(self._memory, what, log=self._log))
            self._add(self.inputs[-1])

    def _add_vhost_user(self, spec: MachineSpec) -> None:
        for one in spec.vhost_user:
            from kvmkit.virtio.vhost_user.device import VhostUserDevice

            self._add(VhostUserDevice(self._memory, one.made(), one.socket, log=self._log))
        for number, volume in enumerate(spec.volumes):
            from kvmkit.vhost_user import virtiofsd
            from kvmkit.virtio.vhost_user.device import VhostUserDevice
            from kvmkit.virtio.vhost_user.kinds import fs

            daemon = virtiofsd.make(volume.host, readonly=volume.readonly)
            kind, name = fs(volume.tagged(number)), f"volume {volume.host}"
            self._add(VhostUserDevice(self._memory, kind, name, name=name, daemon=daemon, log=self._log))

    def _add(self, device: VirtioDevice) -> None:
        self.devices.append(device)
        if self._pci is not None:
            from kvmkit.virtio.pci import PciTransport

            self._transports.append(PciTransport(device, self._pci))
            return
        from kvmkit.virtio.mmio import SIZE, MmioTransport

        index = len(self._transports)
        if index >= len(pc.VIRTIO_MMIO_GSIS):
            raise BadInput(f"more than {len(pc.VIRTIO_MMIO_GSIS)} virtio devices: this board has no place for them")
        base = pc.VIRTIO_MMIO + index * pc.VIRTIO_MMIO_SIZE
        transport = MmioTransport(device, self._vm, base, pc.VIRTIO_MMIO_GSIS[index])
        self._transports.append(transport)
        self._mmio.add(base, SIZE, transport)

    def described(self) -> list[MmioDevice]:
        """For the ACPI tables; nothing where the guest finds them by itself."""
        if not self._transports or self._pci is not None:
            return []
        from kvmkit.boot.acpi import MmioDevice
        from kvmkit.virtio.mmio import MmioTransport

        pages = [transport for transport in self._transports if isinstance(transport, MmioTransport)]
        return [
            MmioDevice(uid=index, base=page.base, size=pc.VIRTIO_MMIO_SIZE, gsi=page.gsi)
            for index, page in enumerate(pages)
        ]

    def boot_paths(self, order: Sequence[int]) -> list[str]:
        """What firmware calls the disks, in the order in which it is to try them: places in `disks`, then in `scsi`."""
        found = []
        for place in order:
            scsi = place >= len(self.disks)
            parts = [_firmware_path(self._transports[min(place, len(self.disks))])]
            parts += ["channel@0", f"disk@{place - len(self.disks):x},0"] if scsi else ["disk@0,0"]
            found.append("/".join(parts))
        return found

    def undriven(self) -> list[str]:
        """For each device that no driver of the guest's has taken into use: which one, and what that needs."""
        bus = MMIO_DRIVER if self._pci is None else PCI_DRIVER
        return [
            f"the guest has not taken {device.name} into use: its kernel needs {device.driver} and {bus}"
            for device in self.devices
            if not device.driven and device not in self._optional
        ]

    def hold(self) -> None:
        """Come back when no device touches guest memory. No vCPU may be running."""
        for device in self.devices:
            device.hold()

    def release(self) -> None:
        for device in self.devices:
            device.release()

    def close(self) -> None:
        for transport in self._transports:
            transport.close()
        self._transports = []
        for device in self.devices:
            device.close()
        for close in self._closers:
            close()
        self._closers = []
        self.devices = []
        self.disks = []
        self.networks = []


def _firmware_path(transport: MmioTransport | PciTransport) -> str:
    """A device as Open Firmware would name it."""
    from kvmkit.virtio.mmio import MmioTransport

    if isinstance(transport, MmioTransport):
        return f"/virtio-mmio@{transport.base:016x}"
    return f"/pci@i0cf8/scsi@{transport.function.slot:x}"
