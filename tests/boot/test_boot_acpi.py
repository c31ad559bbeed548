"""ACPI tables: read, and compiled again, by ACPICA's own tools."""

from __future__ import annotations

import re
import shutil
import struct
import subprocess

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.boot.acpi import MmioDevice, aml, build
from kvmkit.boot.acpi.pci import PciHost
from kvmkit.boot.acpi.tables import table
from kvmkit.bus.pc import ACPI_TABLES, ACPI_TABLES_END, SERIAL_PORTS
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory

DEVICES = [MmioDevice(i, 0xD0000000 + 0x1000 * i, 0x1000, 16 + i % 8, level=i == 3) for i in range(8)]
PCI = PciHost(
    (0xF0000000, 0xFE000000),
    (1 << 34, 1 << 35),
    tuple((slot, pin, 20 + (slot + pin) % 4) for slot in range(1, 32) for pin in range(4)),
)
SHAPES = {
    "small": {"cpus": 1, "serial": SERIAL_PORTS[:1]},
    "full": {"cpus": 4, "serial": SERIAL_PORTS, "virtio_mmio": DEVICES, "keyboard": True},
    "255 vCPUs": {"cpus": 255, "serial": SERIAL_PORTS[:2], "virtio_mmio": DEVICES},
    "x2APIC": {"cpus": 300, "serial": []},
    "PCI": {"cpus": 2, "serial": SERIAL_PORTS[:2], "pci": PCI},
}

iasl = pytest.mark.skipif(shutil.which("iasl") is None, reason="needs iasl (acpica-tools)")


def walk(tables):
    """Follow the pointers from the root as an operating system does: signature to bytes."""
    memory = GuestMemory(1 << 20)
    for address, data in tables.blobs:
        memory.write(address, data)

    def at(address):
        (length,) = struct.unpack("<I", memory.read(address + 4, 4))
        return memory.read(address, length)

    root = memory.read(tables.rsdp, 36)
    found = {"RSDP": root}
    xsdt = at(struct.unpack_from("<Q", root, 24)[0])
    found["XSDT"] = xsdt
    for (address,) in struct.iter_unpack("<Q", xsdt[36:]):
        table = at(address)
        found[table[:4].decode()] = table
    facs, dsdt = struct.unpack_from("<II", found["FACP"], 36)
    found["FACS"], found["DSDT"] = at(facs), at(dsdt)
    assert facs % 64 == 0
    return found


@pytest.mark.parametrize("shape", SHAPES)
def test_tables_lie_in_their_place_and_sum_to_zero(shape):
    tables = build(**SHAPES[shape])
    assert tables.rsdp % 16 == 0
    end = ACPI_TABLES
    for address, data in tables.blobs:
        assert address >= end
        end = address + len(data)
    assert end <= ACPI_TABLES_END
    found = walk(tables)
    expected = {"RSDP", "XSDT", "FACP", "APIC", "FACS", "DSDT"} | ({"MCFG"} if shape == "PCI" else set())
    assert found.keys() == expected
    assert sum(found["RSDP"][:20]) % 256 == 0
    for name, data in found.items():
        assert name == "FACS" or sum(data) % 256 == 0


@iasl
@pytest.mark.parametrize("shape", SHAPES)
def test_iasl_reads_each_table_and_compiles_it_again(shape, tmp_path):
    for name, data in walk(build(**SHAPES[shape])).items():
        if name == "RSDP":
            continue
        path = tmp_path / f"{name}.dat"
        path.write_bytes(data)
        read = subprocess.run(["iasl", "-d", path.name], cwd=tmp_path, capture_output=True, text=True, check=True)
        text = (tmp_path / f"{name}.dsl").read_text()
        assert not re.search("error|warning|invalid|incorrect|unknown", read.stdout + read.stderr, re.IGNORECASE)
        assert "Incorrect checksum" not in text
        again = subprocess.run(
            ["iasl", "-oa", "-p", f"{name}-again", f"{name}.dsl"],
            cwd=tmp_path,
            capture_output=True,
            text=True,
            check=True,
        )
        assert "0 Errors, 0 Warnings" in again.stdout
        if name == "DSDT":
            # iasl writes the same code, but for the compiler's own name in the header.
            assert (tmp_path / "DSDT-again.aml").read_bytes()[36:] == data[36:]


@iasl
def test_the_dsdt_says_what_was_asked_for(tmp_path):
    (tmp_path / "DSDT.dat").write_bytes(walk(build(**SHAPES["full"]))["DSDT"])
    subprocess.run(["iasl", "-d", "DSDT.dat"], cwd=tmp_path, capture_output=True, check=True)
    text = (tmp_path / "DSDT.dsl").read_text()
    assert re.findall(r"Device \((\w+)\)", text) == (
        [f"C00{i}" for i in range(4)]
        + [f"COM{i}" for i in range(1, 5)]
        + ["RTC", "KBD"]
        + [f"V00{i}" for i in range(8)]
    )
    for port, irq in SERIAL_PORTS:
        assert re.search(rf"0x{port:04X},.*?IRQNoFlags \(\)\s*\{{{irq}\}}", text, re.DOTALL)
    assert text.count('"LNRO0005"') == 8
    assert text.count("Interrupt (ResourceConsumer, Edge, ActiveHigh, Exclusive") == 7
    assert text.count("Interrupt (ResourceConsumer, Level, ActiveHigh, Exclusive") == 1
    assert re.search(r"0xD0003000,.*?0x00001000,.*?0x00000013,", text, re.DOTALL)
    assert re.search(r"Name \(\\_S5, Package.*?0x05,\s*0x05", text, re.DOTALL)


@iasl
def test_the_dsdt_describes_the_pci_host_bridge(tmp_path):
    found = walk(build(**SHAPES["PCI"]))
    (tmp_path / "DSDT.dat").write_bytes(found["DSDT"])
    subprocess.run(["iasl", "-d", "DSDT.dat"], cwd=tmp_path, capture_output=True, check=True)
    text = (tmp_path / "DSDT.dsl").read_text()
    bridge = text[text.index("Device (PCI0)") : text.index("Device (MRES)")]
    assert 'EisaId ("PNP0A08")' in bridge
    assert re.search(
        r"WordBusNumber \(ResourceProducer.*?0x0000,.*?0x0000,.*?0x0000,.*?0x0000,.*?0x0001,", bridge, re.S
    )
    assert re.search(r"DWordMemory \(ResourceProducer.*?0xF0000000,.*?0xFDFFFFFF,.*?0x0E000000,", bridge, re.S)
    assert re.search(r"QWordMemory .*?0x0000000400000000,.*?0x00000007FFFFFFFF,.*?0x0000000400000000,", bridge, re.S)
    assert bridge.count("Package (0x04)") == 124
    assert 'ToUUID ("33db4d5b-1ff7-401c-9657-7441c03dd766")' in bridge
    assert struct.unpack_from("<QHBB", found["MCFG"], 44) == (0xE0000000, 0, 0, 0)


def test_the_madt_names_every_vcpu():
    madt = walk(build(cpus=300, serial=[]))["APIC"]
    at, xapic, x2apic, overrides = 44, [], [], {}
    while at < len(madt):
        kind, length = madt[at], madt[at + 1]
        if kind == 0:
            xapic.append(struct.unpack_from("<BBI", madt, at + 2))
        elif kind == 9:
            x2apic.append(struct.unpack_from("<III", madt, at + 4))
        elif kind == 2:
            _, source, gsi, flags = struct.unpack_from("<BBIH", madt, at + 2)
            overrides[source] = (gsi, flags)
        at += length
    assert at == len(madt)
    assert xapic == [(i, i, 1) for i in range(255)]
    assert x2apic == [(i, 1, i) for i in range(255, 300)]
    assert overrides == {0: (2, 0), 9: (9, 0xD)}


@pytest.mark.parametrize(
    "wrong",
    [
        {"cpus": 0, "serial": []},
        {"cpus": 10_000, "serial": []},
        {"cpus": 4096, "serial": []},
        {"cpus": 1, "serial": [(0x3F8, 16)]},
        {"cpus": 1, "serial": [(0x3F8, 4)] * 10},
        {"cpus": 1, "serial": [], "virtio_mmio": [MmioDevice(0, 0xFFFFF000, 0x2000, 5)]},
        {"cpus": 1, "serial": [], "virtio_mmio": [DEVICES[0], DEVICES[0]]},
    ],
)
def test_what_can_not_be_described_is_refused(wrong):
    with pytest.raises(BadInput):
        build(**wrong)


@iasl
@pytest.mark.parametrize("size", [0, 40, *range(48, 60), *range(4076, 4088), 70_000])
def test_package_lengths_at_their_edges(size, tmp_path):
    """A scope whose terms have `size` bytes and a few: its length needs another byte at 64 and at 4096."""
    count, rest = divmod(size, 6)
    names = [aml.name(f"{chr(71 + i // 4096)}{i % 4096:03X}", 0) for i in range(count)]
    code = aml.scope("\\_SB", *names, aml.name("LAST", "x" * rest))
    (tmp_path / "T.dat").write_bytes(table(b"DSDT", 2, code))
    subprocess.run(["iasl", "-d", "T.dat"], cwd=tmp_path, capture_output=True, check=True)
    done = subprocess.run(["iasl", "-oa", "T.dsl"], cwd=tmp_path, capture_output=True, text=True, check=True)
    assert "0 Errors" in done.stdout
    assert (tmp_path / "T.aml").read_bytes()[36:] == code


@given(st.integers(0, (1 << 64) - 1))
def test_numbers_take_their_shortest_form(value):
    encoded = aml.data(value)
    if value < 2:
        assert encoded == bytes([value])
    else:
        size = {0x0A: 1, 0x0B: 2, 0x0C: 4, 0x0E: 8}[encoded[0]]
        assert int.from_bytes(encoded[1:], "little") == value
        assert len(encoded) == size + 1
        assert size == 1 or value >> (4 * size)


def test_names_and_ids():
    assert aml.eisa_id("PNP0501") == b"\x0c\x41\xd0\x05\x01"
    assert aml.name_string("\\_SB.COM1") == b"\\\x2e_SB_COM1"
    assert aml.name_string("A.B.C") == b"\x2f\x03A___B___C___"
    assert aml.method("M", 2, aml.returns(1), serialized=True) == b"\x14\x08M___\x0a\xa4\x01"
    for wrong in ("TOOLONG", "a", "1A", "A B"):
        with pytest.raises(ValueError, match="no ACPI name"):
            aml.name_string(wrong)
    for wrong in ("PNP05", "pnp0501", "PNPxxxx"):
        with pytest.raises(ValueError, match=r"EISA id|base 16"):
            aml.eisa_id(wrong)


@pytest.mark.parametrize("there", [True, False])
def test_the_fadt_says_whether_there_is_an_i8042(there):
    (flags,) = struct.unpack_from("<H", walk(build(cpus=1, serial=[], i8042=there))["FACP"], 109)
    assert bool(flags & 2) == there
    assert flags & 4  # no VGA to look for
