"""What ACPI says of PCI: where configuration space lies (MCFG), and the host bridge with its windows and interrupts.

Source: PCI Firmware Specification 3.3, 4.1.2 (MCFG) and 4.5 (_OSC); ACPI 6.5, 6.2.13 (_PRT).
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

from kvmkit.bus import pc

from . import aml, tables

OSC_UUID = "33DB4D5B-1FF7-401C-9657-7441C03DD766"
OSC_UNKNOWN_UUID, OSC_UNKNOWN_REVISION, OSC_MASKED = 4, 8, 16
OSC_GRANTED = 0x1D
"""Native hot-plug, power events, error reporting and the PCI Express capability: the guest's, if it wants them."""


@dataclass(frozen=True, slots=True)
class PciHost:
    """The bridge's windows: [start, end) of guest physical addresses, below and above 4 GiB; and `gsis`, (slot,
    pin, GSI) of each device's INTA (0) to INTD (3), level-triggered and active low as PCI has them. `config_space`:
    where that is."""

    window: tuple[int, int]
    window64: tuple[int, int]
    gsis: tuple[tuple[int, int, int], ...]
    config_space: int = pc.PCI_ECAM

    def mcfg(self) -> bytes:
        """The table that says where configuration space is: one segment, its buses from 0."""
        return tables.table(b"MCFG", 1, struct.pack("<8xQHBB4x", self.config_space, 0, 0, pc.PCI_BUSES - 1))


def devices(host: PciHost) -> list[bytes]:
    """The host bridge, and a device that keeps its configuration space from being given to others."""
    windows = aml.resource_template(
        aml.bus_numbers(0, pc.PCI_BUSES - 1),
        aml.io(pc.PCI_CONFIG_PORT, 8),
        aml.memory_window(host.window[0], host.window[1] - 1),
        aml.memory_window(host.window64[0], host.window64[1] - 1),
    )
    # The address of an entry: the slot, and any function of it.
    routing = [aml.package(slot << 16 | 0xFFFF, pin, 0, gsi) for slot, pin, gsi in host.gsis]
    bridge = aml.device(
        "PCI0",
        aml.name("_HID", aml.eisa_id("PNP0A08")),
        aml.name("_CID", aml.eisa_id("PNP0A03")),
        aml.name("_SEG", 0),
        aml.name("_BBN", 0),
        aml.name("_UID", 0),
        aml.name("_CCA", 1),
        aml.name("_CRS", windows),
        aml.name("_PRT", aml.package(*routing)),
        _osc(),
    )
    reserved = aml.device(
        "MRES",
        aml.name("_HID", aml.eisa_id("PNP0C02")),
        aml.name("_UID", "PCI"),
        aml.name("_CRS", aml.resource_template(aml.memory32_fixed(host.config_space, pc.PCI_ECAM_SIZE))),
    )
    return [bridge, reserved]


def _osc() -> bytes:
    """_OSC (UUID, revision, words, capabilities): what the guest may handle by itself, by its leave to ask."""
    granted = aml.bits_and(aml.name_string("CTRL"), OSC_GRANTED, aml.LOCAL0)
    known = aml.if_(
        aml.equal(aml.ARG0, aml.uuid(OSC_UUID)),
        aml.dword_field(aml.ARG3, 4, "SUPP"),
        aml.dword_field(aml.ARG3, 8, "CTRL"),
        granted,
        aml.if_(
            aml.negated(aml.equal(aml.LOCAL0, aml.name_string("CTRL"))),
            aml.bits_or(aml.name_string("CDW1"), OSC_MASKED, aml.name_string("CDW1")),
        ),
        aml.if_(
            aml.negated(aml.equal(aml.ARG1, 1)),
            aml.bits_or(aml.name_string("CDW1"), OSC_UNKNOWN_REVISION, aml.name_string("CDW1")),
        ),
        aml.store(aml.LOCAL0, aml.name_string("CTRL")),
    )
    unknown = aml.else_(aml.bits_or(aml.name_string("CDW1"), OSC_UNKNOWN_UUID, aml.name_string("CDW1")))
    return aml.method(
        "_OSC", 4, aml.dword_field(aml.ARG3, 0, "CDW1"), known, unknown, aml.returns(aml.ARG3), serialized=True
    )
