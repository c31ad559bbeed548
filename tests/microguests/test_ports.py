"""Port I/O: every width, both directions, and strings of it."""

from __future__ import annotations

import pytest
from microguest import DATA, Recorder

MODES = ["real", "protected", "long", "ring3"]
WIDTHS = [(1, "al", 0x44), (2, "ax", 0x3344), (4, "eax", 0x11223344)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(("size", "register", "value"), WIDTHS)
def test_out_carries_its_width(guest, mode, size, register, value):
    machine = guest(f"mov eax, 0x11223344\nmov dx, 0x510\nout dx, {register}\nfinish", mode)
    port = Recorder()
    machine.ports.add(0x510, 8, port)
    machine.finish()
    assert port.writes == [(0, size, value)]


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize(
    ("size", "register", "expected"), [(1, "al", 0x112233A4), (2, "ax", 0x1122A3A4), (4, "eax", 0xA1A2A3A4)]
)
def test_in_changes_only_its_width(guest, mode, size, register, expected):
    machine = guest(f"mov eax, 0x11223344\nmov dx, 0x512\nin {register}, dx\nmov ebx, eax\nshow ebx\nfinish", mode)
    port = Recorder(lambda offset, size: 0xFFFFFFFFA1A2A3A4)
    machine.ports.add(0x510, 8, port)
    machine.finish()
    assert port.reads == [(2, size)]
    assert machine.shown == [expected]


def test_nobody_at_a_port_reads_as_ones(guest):
    machine = guest("mov dx, 0x700\nin eax, dx\nmov ebx, eax\nshow ebx\nfinish", "ring3").finish()
    assert machine.shown == [0xFFFFFFFF]
    assert machine.ports.unclaimed == 1


@pytest.mark.parametrize("mode", ["long", "ring3"])
@pytest.mark.parametrize(("size", "letter"), [(1, "b"), (2, "w"), (4, "d")])
def test_outs_sends_each_element(guest, mode, size, letter):
    data = bytes(range(1, 25))
    machine = guest(f"mov esi, {DATA}\nmov ecx, {24 // size}\nmov dx, 0x510\ncld\nrep outs{letter}\nfinish", mode)
    machine.memory.write(DATA, data)
    port = Recorder()
    machine.ports.add(0x510, 4, port)
    machine.finish()
    assert b"".join(value.to_bytes(size, "little") for _, _, value in port.writes) == data
    assert machine.regs().rcx == 0
    assert machine.regs().rsi == DATA + 24


@pytest.mark.parametrize("mode", ["long", "ring3"])
@pytest.mark.parametrize(("size", "letter"), [(1, "b"), (2, "w"), (4, "d")])
def test_ins_fills_memory(guest, mode, size, letter):
    machine = guest(f"mov edi, {DATA}\nmov ecx, {24 // size}\nmov dx, 0x510\ncld\nrep ins{letter}\nfinish", mode)
    sequence = iter(range(1, 100))
    machine.ports.add(0x510, 4, Recorder(lambda offset, size: next(sequence)))
    machine.finish()
    expected = b"".join(i.to_bytes(size, "little") for i in range(1, 24 // size + 1))
    assert machine.memory.read(DATA, 25) == expected + b"\0"
    assert machine.regs().rdi == DATA + 24


def test_outs_crosses_a_page(guest):
    start = DATA + 0x1000 - 10
    machine = guest(f"mov esi, {start}\nmov ecx, 20\nmov dx, 0x510\ncld\nrep outsb\nfinish", "ring3")
    machine.memory.write(start, bytes(range(20)))
    port = Recorder()
    machine.ports.add(0x510, 1, port)
    machine.finish()
    assert [value for _, _, value in port.writes] == list(range(20))


def test_ins_crosses_a_page(guest):
    start = DATA + 0x1000 - 10
    machine = guest(f"mov edi, {start}\nmov ecx, 20\nmov dx, 0x510\ncld\nrep insb\nfinish", "ring3")
    sequence = iter(range(20))
    machine.ports.add(0x510, 1, Recorder(lambda offset, size: next(sequence)))
    machine.finish()
    assert machine.memory.read(start, 20) == bytes(range(20))


def test_outs_goes_down_with_the_direction_flag(guest):
    machine = guest(f"mov esi, {DATA + 15}\nmov ecx, 16\nmov dx, 0x510\nstd\nrep outsb\ncld\nfinish", "ring3")
    machine.memory.write(DATA, bytes(range(16)))
    port = Recorder()
    machine.ports.add(0x510, 1, port)
    machine.finish()
    assert [value for _, _, value in port.writes] == list(range(15, -1, -1))
    assert machine.regs().rsi == DATA - 1


def test_ins_goes_down_with_the_direction_flag(guest):
    machine = guest(f"mov edi, {DATA + 15}\nmov ecx, 16\nmov dx, 0x510\nstd\nrep insb\ncld\nfinish", "ring3")
    sequence = iter(range(16))
    machine.ports.add(0x510, 1, Recorder(lambda offset, size: next(sequence)))
    machine.finish()
    assert machine.memory.read(DATA, 16) == bytes(range(15, -1, -1))


def test_a_device_error_ends_run_and_not_the_process(guest):
    machine = guest("mov dx, 0x510\nout dx, al\nfinish", "ring3")

    class Broken(Recorder):
        def write(self, offset, size, value):
            raise ZeroDivisionError

    machine.ports.add(0x510, 1, Broken())
    with pytest.raises(ZeroDivisionError):
        machine.run()
