"""What every PC has, for the fuzzer: ports and their devices, interrupt controllers and timers, fw_cfg, the PCI bus."""

from __future__ import annotations

import itertools
import struct

from kvmkit.accel.tcg.chips import Chips
from kvmkit.bus import AddressSpace, Device, pc
from kvmkit.devices.debug import DebugConsole, DebugExit
from kvmkit.devices.fw_cfg import PORTS, FwCfg
from kvmkit.devices.i8042 import I8042, SystemControlA
from kvmkit.devices.ignored import add_ignored
from kvmkit.devices.power import PowerManagement, ResetPort
from kvmkit.devices.rtc import Rtc
from kvmkit.devices.serial import SerialPort
from kvmkit.memory import GuestMemory
from kvmkit.pci.bridge import ConfigPorts
from kvmkit.testing import PciDriver

from .bench import Bench, ask
from .poison import fence
from .reader import Reader

LONG = 40_000_000_000
"""Nanoseconds; two of them are longer than the PM timer takes to its top bit."""


class Sink:
    """Takes as many bytes as the fuzzer says."""

    def __init__(self) -> None:
        self.room = 0

    def write(self, data: bytes) -> int:
        return min(self.room, len(data))

    def fileno(self) -> int:
        return -1


def ports(data: bytes) -> None:
    """Serial ports, clock, keyboard controller, power management, reset and debug ports."""
    program, sink = Reader(data), Sink()
    now = 1_700_000_000_000_000_000
    ended: list[int] = []
    levels: dict[int, int] = {}

    def clock() -> int:
        return now

    def line(irq: int) -> object:
        return lambda level: levels.__setitem__(irq, level)

    def reset() -> None:
        ended.append(-1)

    serial = SerialPort(sink, line(4), line_buffered=True), SerialPort(sink, line(3), flow_control=True)  # type: ignore[arg-type]
    rtc = Rtc(clock, line(8), memory=8 << 20)  # type: ignore[arg-type]
    keyboard = I8042(reset, line(1))  # type: ignore[arg-type]
    power = PowerManagement(reset, line(9), clock)  # type: ignore[arg-type]
    space = AddressSpace("ports")
    for port, size, device in (
        (0x3F8, 8, serial[0]), (0x2F8, 8, serial[1]), (pc.RTC_PORT, 2, rtc), (pc.I8042_DATA, 1, keyboard),
        (pc.I8042_COMMAND, 1, keyboard.command_port), (0x92, 1, SystemControlA(reset)),
        (pc.PM_BASE, pc.PM_SIZE, power), (pc.RESET_PORT, 1, ResetPort(reset)), (0xE9, 1, DebugConsole(sink)),
        (0x402, 1, DebugConsole(sink)), (pc.DEBUG_EXIT, 4, DebugExit(ended.append)),
    ):  # fmt: skip
        space.add(port, size, device)
    add_ignored(space)
    known = [port + i for port, size, device in space.describe() if type(device) is not Device for i in range(size)]
    while program.more:
        what = program.below(12)
        port = program.choose(known) if program.below(16) else program.number(2)
        size = (1, 1, 2, 4)[program.below(4)]
        if what < 5:
            space.write(port, size, program.number(size))
        elif what < 8:
            space.read(port, size)
        elif what == 8:
            sink.room = program.below(9)
            for each in serial:
                each.flush()
                each.receive(program.bytes(program.below(20)))
        elif what == 9:
            now += program.choose((0, 1, 1_000_000, 500_000_000, 1_000_000_000, LONG, program.number(7)))
            for timed in (rtc, power):
                left = timed.deadline()
                assert left is None or left >= 0
                timed.expire()
        elif what == 10:
            serial[program.below(2)].receive_break()
            power.press_power_button()
            power.raise_event(program.below(32))
        else:  # its state is one that can be taken
            for saved in (*serial, rtc, keyboard, power):
                saved.restore(saved.state())
        for each in serial:
            assert each.room() >= 0
            assert each.pending <= 4096
    assert all(level in (0, 1) for level in levels.values())


def chips(data: bytes) -> None:
    """PIC, PIT, IOAPIC and local APIC of the software CPU."""
    program, machine, now = Reader(data), Chips(), 0
    registers = (*range(0, 0x400, 16), 0xB0, 0xF0, 0x300, 0x310, 0x320, 0x350, 0x380, 0x3E0)
    for _ in range(96):
        if not program.more:
            break
        what = program.below(12)
        if what < 3:
            port = program.choose((0x20, 0x21, 0xA0, 0xA1, 0x40, 0x41, 0x42, 0x43, 0x61, 0x4D0, program.number(2)))
            size = (1, 1, 2, 4)[program.below(4)]
            if program.flag():
                machine.port_write(port, size, program.number(size), now)
            else:
                machine.read_port(port, size, now)
        elif what < 7:
            size = (4, 4, 1, 2, 8)[program.below(5)]
            if program.flag():  # select, then the window
                machine.mmio_write(pc.IOAPIC, 4, program.below(0x41), now)
                address = pc.IOAPIC + 0x10
            elif program.flag():
                address = pc.LAPIC + program.choose(registers)
            else:
                address = program.choose((pc.IOAPIC, pc.LAPIC)) + program.number(2) % 0x1000
            if program.flag():
                machine.mmio_write(address, size, program.value() & ((1 << 8 * size) - 1), now)
            else:
                machine.read_mmio(address, size, now)
        elif what == 7:
            msr = program.choose((0x1B, 0x6E0, 0x800 + program.below(0x100), program.number(4)))
            machine.write_msr(msr, program.value(), now)
        elif what == 8:
            machine.set_irq(program.below(26), program.flag())
            if program.flag():
                machine.set_resample(program.number(4))
            machine.signal_msi(0xFEE00000 + program.number(3), program.number(4))
        elif what == 9:
            now = min(now + program.choose((0, 1, 1000, 1_000_000, LONG, program.number(8) >> 2)), 1 << 62)
            machine.poll(now)
            assert machine.deadline() > now or machine.deadline() >= 0
        elif what == 10:
            vector = machine.acknowledge()
            assert -1 <= vector <= 255
            machine.take_eoi()
        else:  # its state is one that can be taken
            other = Chips()
            assert other.lapic.restore_base(machine.lapic.apic_base)
            for name in ("lapic", "ioapic", "pic_master", "pic_slave", "pit"):
                other.set(name, machine.get(name, now), now)
            machine = other
        assert -1 <= machine.lapic.best <= 255


FW_MEMORY = 1 << 18
_fw: list[tuple[GuestMemory, FwCfg]] = []


def fw_cfg(data: bytes) -> None:
    """Its ports, and transfers by DMA."""
    if not _fw:
        memory = GuestMemory(FW_MEMORY)
        fence(memory)
        _fw.append((memory, FwCfg(memory, {"etc/a": b"a" * 5000, "b": b"", "etc/c": bytes(range(256))}, cpus=2)))
    memory, device = _fw[0]
    program = Reader(data)
    device.restore(type(device.state())())
    space = AddressSpace("ports")
    space.add(pc.FW_CFG_PORT, PORTS, device)
    while program.more:
        what, size = program.below(6), 1 << program.below(4)
        if what == 0:
            space.write(pc.FW_CFG_PORT + program.below(PORTS), size, program.number(size))
        elif what == 1:
            space.read(pc.FW_CFG_PORT + program.below(PORTS), size)
        elif what == 2:
            space.write(pc.FW_CFG_PORT, 2, program.choose((0, 1, 0x19, 0x20, 0x21, 0x22, program.number(2))))
        elif what == 3:
            device.restore(device.state())
        else:
            at = program.choose((0x1000, 0x1000, FW_MEMORY - 16, FW_MEMORY - 8, program.value()))
            control = program.below(32) | program.choose((0x19, 0x20, 0x22, program.number(2))) << 16
            length = program.choose((0, 4, 64, 5001, FW_MEMORY, program.value() & 0xFFFFFFFF))
            to = program.choose((0x2000, 0x1000, FW_MEMORY - 1, program.value()))
            if at <= FW_MEMORY - 16:
                memory.write(at, struct.pack(">IIQ", control, length, to))
            address = struct.pack(">Q", at)
            for half in (0, 4):
                value = int.from_bytes(address[half : half + 4], "little")
                space.write(pc.FW_CFG_PORT + 4 + half, 4, value)
    space.write(pc.FW_CFG_PORT, 2, 0)
    assert bytes(space.read(pc.FW_CFG_PORT + 1, 1) for _ in range(4)) == b"QEMU"


# The PCI bus, by one of its functions.


def pci() -> Bench:
    from kvmkit.virtio.rng import Rng

    def base(bench: Bench) -> int:
        return int(bench.driver.config(0x10, 4) & ~15 | bench.driver.config(0x14, 4) << 32)

    def config(bench: Bench, program: Reader) -> None:
        driver, size = bench.driver, (1, 2, 4, 4)[program.below(4)]
        places = (4, 0x10, 0x14, driver.msix_control, driver.msix_control, 0x3C, program.number(1), program.number(2))
        offset = min(program.choose(places) & 0xFFF, 0x1000 - size)
        if program.below(4):
            driver.set_config(offset, size, program.choose((0, 2, 6, 0x406, 0xC000, 0x8000, program.number(size))))
        else:
            driver.config(offset, size)
        bench.due += 1

    def functions(bench: Bench, program: Reader) -> None:
        """All of the bus, by memory and by ports: what is there, and what is not."""
        where = program.number(3) & 0xFFFFF
        space, size = ConfigPorts(bench.driver.bridge, Device()), (1, 2, 4)[program.below(3)]
        if program.flag():
            space.write(0, 4, 0x80000000 | where & 0xFFFFFC)
            space.write(4 + program.below(4), size, program.number(size))
            space.read(program.below(8), size)
        else:
            bench.driver.vm.write(pc.PCI_ECAM + where, size, program.number(size))
            bench.driver.vm.read(pc.PCI_ECAM + where, size)
        bench.due += 1

    def bar(bench: Bench, program: Reader) -> None:
        """The BAR where the guest has put it now: table, pending bits and the rest."""
        size, offset = 1 << program.below(4), program.choose((0x4000, 0x5000, 0)) + program.number(2) & 0x7FFF
        if program.flag():
            bench.driver.vm.write(base(bench) + offset, size, program.number(size))
        else:
            bench.driver.vm.read(base(bench) + offset, size)
        bench.due += 1

    def table(bench: Bench, program: Reader) -> None:
        """An entry of the MSI-X table."""
        entry = bench.driver.table + 16 * program.below(3)
        values = (program.choose((0xFEE00000, program.number(4))), program.number(1), program.number(4), program.flag())
        for offset, value in enumerate(values):
            bench.driver.vm.write(entry + 4 * offset, 4, value)

    def window(bench: Bench, program: Reader) -> None:
        """The window on the BAR in configuration space."""
        driver = bench.driver
        at = driver.places[5]
        driver.set_config(at + 4, 1, program.choose((0, 0, 4, program.number(1))))
        driver.set_config(at + 8, 4, program.number(2) if program.flag() else program.value() & 0xFFFFFFFF)
        driver.set_config(at + 12, 4, program.choose((1, 2, 4, 3, 8, program.value() & 0xFFFFFFFF)))
        if program.flag():
            driver.set_config(at + 16, (1, 2, 4)[program.below(3)], program.number(4))
        else:
            driver.config(at + 16, 4)
        bench.due += 1

    def interrupt(bench: Bench, program: Reader) -> None:
        transport = bench.driver.pci
        transport.msix.trigger(program.below(5) - 1)
        for vector in range(transport.msix.count):
            transport.msix.is_pending(vector)
        bench.driver.vm.read(base(bench) + 0x1000 * program.below(8), 1)

    def saved(bench: Bench, program: Reader) -> None:
        bench.driver.pci.restore(bench.driver.pci.state())

    def check(bench: Bench) -> None:
        assert len(ask(bench, 0, b"", 64)) == 64

    return Bench(
        lambda memory, log: Rng(memory, log=log),
        PciDriver,
        lambda _, program, __: (b"", program.number(2)),
        check,
        own=tuple(itertools.chain((config, functions, bar, table, window, interrupt, saved), (config, table))),
    )
