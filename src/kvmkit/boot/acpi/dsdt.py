"""The DSDT: the devices a guest can't find by looking for them, and how to switch off."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, NamedTuple

from kvmkit.bus.pc import I8042_COMMAND, I8042_DATA, RTC_IRQ, RTC_PORT, SLEEP_S5

from . import aml

if TYPE_CHECKING:
    from .pci import PciHost

KEYBOARD_IRQ = 1


class MmioDevice(NamedTuple):
    """A virtio-mmio device: `uid` is unique among them, `size` bytes of registers at guest physical `base`, below
    4 GiB, and an interrupt line. The line is edge-triggered, as an irqfd without resample drives it, unless `level`."""

    uid: int
    base: int
    size: int
    gsi: int
    level: bool = False


def code(
    cpus: int,
    serial: Sequence[tuple[int, int]],
    virtio_mmio: Sequence[MmioDevice],
    *,
    keyboard: bool,
    pci: PciHost | None = None,
) -> bytes:
    """The table's AML, without its header."""
    devices = [_processor(index) for index in range(cpus)]
    devices += [_serial(index, port, irq) for index, (port, irq) in enumerate(serial)]
    devices.append(
        aml.device(
            "RTC",
            aml.name("_HID", aml.eisa_id("PNP0B00")),
            aml.name("_CRS", aml.resource_template(aml.io(RTC_PORT, 2), aml.irq(RTC_IRQ))),
        )
    )
    if keyboard:
        resources = aml.resource_template(aml.io(I8042_DATA, 1), aml.io(I8042_COMMAND, 1), aml.irq(KEYBOARD_IRQ))
        devices.append(aml.device("KBD", aml.name("_HID", aml.eisa_id("PNP0303")), aml.name("_CRS", resources)))
    devices += [_virtio(index, device) for index, device in enumerate(virtio_mmio)]
    if pci is not None:
        from .pci import devices as pci_devices

        devices += pci_devices(pci)
    return aml.name("\\_S5", aml.package(SLEEP_S5, SLEEP_S5, 0, 0)) + aml.scope("\\_SB", *devices)


def _processor(index: int) -> bytes:
    return aml.device(f"C{index:03X}", aml.name("_HID", "ACPI0007"), aml.name("_UID", index))


def _serial(index: int, port: int, irq: int) -> bytes:
    return aml.device(
        f"COM{index + 1}",
        aml.name("_HID", aml.eisa_id("PNP0501")),
        aml.name("_UID", index + 1),
        aml.name("_CRS", aml.resource_template(aml.io(port, 8), aml.irq(irq))),
    )


def _virtio(index: int, device: MmioDevice) -> bytes:
    return aml.device(
        f"V{index:03X}",
        aml.name("_HID", "LNRO0005"),
        aml.name("_UID", device.uid),
        aml.name(
            "_CRS",
            aml.resource_template(
                aml.memory32_fixed(device.base, device.size), aml.interrupt([device.gsi], level=device.level)
            ),
        ),
    )
