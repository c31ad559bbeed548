"""Memory-mapped I/O: every width, both directions, and accesses that devices do not expect."""

from __future__ import annotations

import pytest
from microguest import DATA, MMIO, Recorder

MODES = ["protected", "long", "ring3"]
WIDTHS = [(1, "al", 0x44), (2, "ax", 0x3344), (4, "eax", 0x11223344)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "register", "value"), WIDTHS)
def test_a_store_carries_its_width(guest, mode, size, register, value):
    machine = guest(f"mov eax, 0x11223344\nmov ebx, {MMIO}\nmov [ebx + 8], {register}\nfinish", mode)
    device = Recorder()
    machine.mmio.add(MMIO, 0x1000, device)
    machine.finish()
    assert device.writes == [(8, size, value)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("size", "register", "expected"), [(1, "al", 0x112233A4), (2, "ax", 0x1122A3A4), (4, "eax", 0xA1A2A3A4)]
)
def test_a_load_changes_only_its_width(guest, mode, size, register, expected):
    code = f"mov eax, 0x11223344\nmov ebx, {MMIO}\nmov {register}, [ebx + 4]\nmov ecx, eax\nshow ecx\nfinish"
    machine = guest(code, mode)
    device = Recorder(lambda offset, size: 0xFFFFFFFFA1A2A3A4)
    machine.mmio.add(MMIO, 0x1000, device)
    machine.finish()
    assert device.reads == [(4, size)]
    assert machine.shown == [expected]


@pytest.mark.parametrize("mode", ["long", "ring3"])
def test_a_store_of_eight_bytes(guest, mode):
    machine = guest(f"mov rax, 0x1122334455667788\nmov ebx, {MMIO}\nmov [rbx], rax\nfinish", mode)
    device = Recorder()
    machine.mmio.add(MMIO, 0x1000, device)
    machine.finish()
    assert device.writes == [(0, 8, 0x1122334455667788)]


@pytest.mark.parametrize("mode", ["long", "ring3"])
def test_a_load_of_eight_bytes(guest, mode):
    machine = guest(f"mov ebx, {MMIO}\nmov rax, [rbx]\nmov [{DATA}], rax\nfinish", mode)
    machine.mmio.add(MMIO, 0x1000, Recorder(lambda offset, size: 0x1122334455667788))
    machine.finish()
    assert machine.memory.read(DATA, 8) == bytes.fromhex("8877665544332211")


def test_a_sign_extending_load(guest):
    machine = guest(f"mov ebx, {MMIO}\nmovsx ecx, byte ptr [rbx]\nshow ecx\nfinish", "ring3")
    machine.mmio.add(MMIO, 0x1000, Recorder(lambda offset, size: 0x80))
    assert machine.finish().shown == [0xFFFFFF80]


def test_read_modify_write_reads_then_writes(guest):
    machine = guest(f"mov ebx, {MMIO}\nadd dword ptr [rbx], 5\nfinish", "ring3")
    device = Recorder(lambda offset, size: 37)
    machine.mmio.add(MMIO, 0x1000, device)
    machine.finish()
    assert device.reads == [(0, 4)]
    assert device.writes == [(0, 4, 42)]


@pytest.mark.parametrize("mode", ["long", "ring3"])
def test_a_store_over_a_page_boundary_arrives_whole(guest, mode):
    machine = guest(f"mov eax, 0x11223344\nmov ebx, {MMIO + 0xFFD}\nmov [rbx], eax\nfinish", mode)
    device = Recorder()
    machine.mmio.add(MMIO, 0x2000, device)
    machine.finish()
    seen = {}
    for offset, size, value in device.writes:
        assert size in (1, 2, 4, 8)  # the widths a device is promised
        for i in range(size):
            seen[offset + i] = value >> 8 * i & 0xFF
    assert seen == {0xFFD: 0x44, 0xFFE: 0x33, 0xFFF: 0x22, 0x1000: 0x11}


def test_movs_copies_from_a_device_to_memory(guest):
    machine = guest(f"mov esi, {MMIO}\nmov edi, {DATA}\nmov ecx, 4\ncld\nrep movsd\nfinish", "ring3")
    machine.mmio.add(MMIO, 0x1000, Recorder(lambda offset, size: 0x1000 + offset))
    machine.finish()
    words = [int.from_bytes(machine.memory.read(DATA + 4 * i, 4), "little") for i in range(4)]
    assert words == [0x1000, 0x1004, 0x1008, 0x100C]


def test_nobody_at_an_address_reads_as_ones(guest):
    machine = guest(f"mov ebx, {MMIO}\nmov ecx, [rbx]\nshow ecx\nmov [rbx], ecx\nfinish", "ring3").finish()
    assert machine.shown == [0xFFFFFFFF]
    assert machine.mmio.unclaimed == 2


def test_an_access_past_the_end_of_a_device_is_nobodys(guest):
    machine = guest(f"mov ebx, {MMIO + 6}\nmov [rbx], eax\nfinish", "ring3")
    device = Recorder()
    machine.mmio.add(MMIO, 8, device)
    machine.finish()
    assert device.writes == []
    assert machine.mmio.unclaimed == 1
