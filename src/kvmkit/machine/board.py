"""The board: guest memory, the two address spaces, the engine's VM, the devices, and the tables that describe them."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Protocol

from kvmkit.bus import AddressSpace, pc
from kvmkit.devices.debug import DebugConsole, DebugExit
from kvmkit.devices.i8042 import I8042, SystemControlA
from kvmkit.devices.ignored import NO_PCI, add_ignored
from kvmkit.devices.power import PowerManagement, ResetPort
from kvmkit.devices.rtc import Rtc
from kvmkit.devices.serial import SerialPort
from kvmkit.devices.sinks import Sink
from kvmkit.machine.firmware import Firmware
from kvmkit.machine.virtio import VirtioDevices
from kvmkit.memory import HOLE
from kvmkit.memory.backing import allocate

if TYPE_CHECKING:
    from kvmkit.accel import Engine, VirtualCpu, VirtualMachine
    from kvmkit.boot.acpi import AcpiTables
    from kvmkit.boot.acpi.pci import PciHost
    from kvmkit.devices.lines import Timed
    from kvmkit.machine.spec import MachineSpec
    from kvmkit.memory import GuestMemory
    from kvmkit.pci import HostBridge

SERIAL_REGISTERS = 8
KEYBOARD_IRQ = 1


class Events(Protocol):
    """What the guest can ask of its machine by a device. Called on a vCPU's thread, and must not block."""

    def power_off(self) -> None: ...
    def reset(self) -> None: ...
    def debug_exit(self, status: int) -> None: ...


class Board:
    """Everything that a reset makes anew. Made and closed by one thread, while no vCPU runs."""

    memory: GuestMemory
    vm: VirtualMachine
    vcpus: list[VirtualCpu]

    def __init__(
        self,
        spec: MachineSpec,
        engine: Engine,
        events: Events,
        console: Sink,
        agent: Sink,
        debug: Sink,
        log: Callable[[str], None] | None = None,
    ) -> None:
        self.spec = spec
        self.rsdp = 0
        self.firmware = Firmware(spec) if spec.firmware else None
        self.vcpus = []
        self.pci: HostBridge | None = None
        try:
            self.memory = allocate(
                spec.memory,
                hugepages=spec.hugepages,
                path=spec.memory_path,
                preallocate=spec.preallocate,
                shared=spec.shares_memory,
                behind=sum(each.check() for each in spec.pmem),
                below=self.firmware.low_memory if self.firmware else HOLE,
            )
            if self.firmware is not None:
                self.firmware.load(self.memory)
            self.ports = AddressSpace("ports")
            self.mmio = AddressSpace("memory")
            self.vm = engine.create(self.memory, self.ports, self.mmio, cpu=spec.cpu_text, cpus=spec.cpus)
            self.pci = self._add_pci() if spec.on_pci else None
            self._add_serial(console, agent)
            self._add_platform(events, debug)
            self.virtio = VirtioDevices(spec, self.memory, self.vm, self.mmio, self.pci, log)
            if self.firmware is not None:
                self._add_firmware(self.firmware)
            else:
                self._add_tables()
            self.vcpus = [self.vm.create_vcpu(index) for index in range(spec.cpus)]
        except BaseException:
            self.close()
            raise

    def _line(self, irq: int) -> Callable[[int], None]:
        return functools.partial(self.vm.set_irq, irq)

    def _add_serial(self, console: Sink, agent: Sink) -> None:
        """The console, whose lines are shown as they end; the agent's channel, which loses nothing."""
        self.console = SerialPort(console, self._line(pc.SERIAL_PORTS[0][1]), line_buffered=True)
        self.agent = SerialPort(agent, self._line(pc.SERIAL_PORTS[1][1]), flow_control=True)
        for (port, _), device in zip(pc.SERIAL_PORTS, self.serial, strict=False):
            self.ports.add(port, SERIAL_REGISTERS, device)

    @property
    def serial(self) -> Sequence[SerialPort]:
        return (self.console, self.agent)

    def _add_pci(self) -> HostBridge:
        """The bus; its devices come later. A machine without it neither imports nor describes PCI."""
        if self.firmware is not None and self.firmware.uefi:
            from kvmkit.pci.q35 import Q35

            return Q35(self.vm, self.memory, self.mmio)
        from kvmkit.pci import HostBridge

        return HostBridge(self.vm, self.memory, self.mmio)

    def _add_platform(self, events: Events, debug: Sink) -> None:
        add = self.ports.add
        low = self.memory.low
        self.rtc = Rtc(irq=self._line(pc.RTC_IRQ), memory=low, high=self.memory.size - low)
        add(pc.RTC_PORT, 2, self.rtc)
        hidden = self.firmware is not None and self.firmware.uefi
        self.i8042 = I8042(events.reset, self._line(KEYBOARD_IRQ), hidden=hidden)
        add(pc.I8042_DATA, 1, self.i8042)
        add(pc.I8042_COMMAND, 1, self.i8042.command_port)
        add(0x92, 1, SystemControlA(events.reset))
        self.power = PowerManagement(events.power_off, self._line(pc.ACPI_IRQ))
        add(pc.PM_BASE, pc.PM_SIZE, self.power)
        reset_port = ResetPort(events.reset)
        if self.pci is None:
            add(pc.RESET_PORT, 1, reset_port)
            add_ignored(self.ports, NO_PCI)
        else:
            from kvmkit.pci.bridge import ConfigPorts

            add(pc.PCI_CONFIG_PORT, 8, ConfigPorts(self.pci, reset_port))
        for port in pc.DEBUG_CONSOLES:
            add(port, 1, DebugConsole(debug))
        if self.spec.debug_exit:
            add(pc.DEBUG_EXIT, 4, DebugExit(events.debug_exit))
        add_ignored(self.ports)

    @property
    def timed(self) -> Sequence[Timed]:
        """Devices that act when their time has come."""
        return (self.rtc, self.power)

    def _add_tables(self) -> None:
        tables = self._tables(pc.ACPI_TABLES, pc.ACPI_TABLES_END)
        for address, data in tables.blobs:
            self.memory.write(address, data)
        self.rsdp = tables.rsdp

    def _tables(self, start: int = 0, end: int = 1 << 20) -> AcpiTables:
        """ACPI. It keeps quiet about the keyboard controller, which spares Linux a search; its reset works anyway."""
        from kvmkit.boot import acpi

        return acpi.build(
            cpus=self.spec.cpus,
            serial=pc.SERIAL_PORTS[: len(self.serial)],
            virtio_mmio=self.virtio.described(),
            i8042=False,
            pci=self._describe_pci(self.pci) if self.pci is not None else None,
            start=start,
            end=end,
        )

    def _add_firmware(self, firmware: Firmware) -> None:
        """What it asks the machine by fw_cfg, and where it keeps what it is to remember."""
        from kvmkit.devices.fw_cfg import PORTS, FwCfg

        files = firmware.files(self.memory, self._tables, self.virtio.boot_paths(self.spec.all_boot_order))
        self.fw_cfg = FwCfg(self.memory, files, items=firmware.items(), cpus=self.spec.cpus)
        self.ports.add(pc.FW_CFG_PORT, PORTS, self.fw_cfg)
        self.rtc.memory[pc.CMOS_BOOT_ORDER] = pc.DISK_THEN_CDROM
        firmware.add_flash(self.mmio)

    def _describe_pci(self, bridge: HostBridge) -> PciHost:
        from kvmkit.boot.acpi.pci import PciHost

        window, window64 = bridge.described()
        return PciHost((*window,), (*window64,), bridge.gsis(), bridge.config_space)

    def exits(self) -> dict[str, int]:
        """How often the guest left, by reason, over all vCPUs."""
        total: dict[str, int] = {}
        for vcpu in self.vcpus:
            for reason, count in vcpu.exits().items():
                total[reason] = total.get(reason, 0) + count
        return total

    def close(self) -> None:
        """Give everything back. No thread may be in a vCPU."""
        if hasattr(self, "virtio"):
            self.virtio.close()
        for vcpu in self.vcpus:
            vcpu.close()
        self.vcpus = []
        if self.pci is not None:
            self.pci.stop()
        if hasattr(self, "vm"):
            self.vm.close()
        if self.pci is not None:
            self.pci.close()
        if hasattr(self, "memory"):
            self.memory.close()
        if self.firmware is not None:
            self.firmware.close()
