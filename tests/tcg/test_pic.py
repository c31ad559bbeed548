"""The pair of 8259As by the data sheet."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.accel.tcg.pic import Pic
from kvmkit.errors import BadInput

MASTER, SLAVE, ELCR = 0x20, 0xA0, 0x4D0
PORTS = (0x20, 0x21, 0xA0, 0xA1, 0x4D0, 0x4D1)
EOI, READ_IRR, READ_ISR, POLL = 0x20, 0x0A, 0x0B, 0x0C


def initialize(pic: Pic, icw4: int = 1, slave_icw4: int = 1) -> None:
    """As every PC's firmware does: vectors 0x30 and 0x38, everything unmasked."""
    for port, base, cascade, last in ((MASTER, 0x30, 4, icw4), (SLAVE, 0x38, 2, slave_icw4)):
        pic.write(port, 0x11)
        pic.write(port + 1, base)
        pic.write(port + 1, cascade)
        pic.write(port + 1, last)


@pytest.fixture
def pic() -> Pic:
    chips = Pic()
    initialize(chips)
    return chips


def pulse(pic: Pic, irq: int) -> None:
    pic.set_line(irq, True)
    pic.set_line(irq, False)


def see(pic: Pic, port: int, command: int) -> int:
    pic.write(port, command)
    return pic.read(port)


def test_claims_its_ports_only() -> None:
    pic = Pic()
    assert [port for port in range(0x10000) if pic.claims(port)] == sorted(PORTS)


def test_silent_before_initialization() -> None:
    pic = Pic()
    pic.set_line(1, True)
    assert not pic.output()


def test_priorities_and_nesting(pic: Pic) -> None:
    pulse(pic, 5)
    pulse(pic, 3)
    assert see(pic, MASTER, READ_IRR) == 0x28
    assert pic.acknowledge() == 0x33
    assert see(pic, MASTER, READ_ISR) == 8
    assert not pic.output()
    pulse(pic, 1)
    assert pic.acknowledge() == 0x31
    pic.write(MASTER, EOI)
    assert see(pic, MASTER, READ_ISR) == 8
    assert not pic.output()
    pic.write(MASTER, EOI)
    assert pic.acknowledge() == 0x35


def test_mask(pic: Pic) -> None:
    pic.write(MASTER + 1, 0x08)
    assert pic.read(MASTER + 1) == 8
    pulse(pic, 3)
    assert not pic.output()
    pic.write(MASTER + 1, 0)
    assert pic.output()


def test_spurious_interrupt(pic: Pic) -> None:
    pic.write(ELCR, 0x20)
    pic.set_line(5, True)
    assert pic.output()
    pic.set_line(5, False)
    assert not pic.output()
    assert pic.acknowledge() == 0x37
    assert see(pic, MASTER, READ_ISR) == 0


def test_slave_through_the_cascade(pic: Pic) -> None:
    pulse(pic, 12)
    assert see(pic, MASTER, READ_IRR) == 4
    assert pic.acknowledge() == 0x3C
    assert see(pic, MASTER, READ_ISR) == 4
    assert see(pic, SLAVE, READ_ISR) == 0x10
    pulse(pic, 3)
    assert not pic.output()  # line 2 is in service and comes before 3
    pic.write(SLAVE, EOI)
    pic.write(MASTER, EOI)
    assert pic.acknowledge() == 0x33


def test_a_slave_line_more_urgent_than_the_one_in_service(pic: Pic) -> None:
    pulse(pic, 12)
    pic.acknowledge()
    pulse(pic, 8)
    assert not pic.output()
    initialize(pic, icw4=0x11)  # special fully nested: the master lets the slave through
    pulse(pic, 12)
    assert pic.acknowledge() == 0x3C
    pulse(pic, 8)
    assert pic.acknowledge() == 0x38
    pulse(pic, 14)
    assert not pic.output()


def test_the_cascade_is_no_line(pic: Pic) -> None:
    pic.set_line(2, True)
    pic.set_line(16, True)
    assert not pic.output()


def test_an_edge_counts_once(pic: Pic) -> None:
    pic.set_line(4, True)
    assert pic.acknowledge() == 0x34
    pic.write(MASTER, EOI)
    pic.set_line(4, True)
    assert not pic.output()
    pic.set_line(4, False)
    pic.set_line(4, True)
    assert pic.output()


def test_a_level_counts_while_it_is_up(pic: Pic) -> None:
    pic.write(ELCR + 1, 0x04)
    pic.set_line(10, True)
    assert pic.acknowledge() == 0x3A
    pic.write(SLAVE, EOI)
    pic.write(MASTER, EOI)
    assert pic.acknowledge() == 0x3A
    pic.set_line(10, False)
    pic.write(SLAVE, EOI)
    pic.write(MASTER, EOI)
    assert not pic.output()


def test_elcr_has_no_bits_for_what_is_an_edge_on_every_pc(pic: Pic) -> None:
    pic.write(ELCR, 0xFF)
    pic.write(ELCR + 1, 0xFF)
    assert pic.read(ELCR) == 0xF8
    assert pic.read(ELCR + 1) == 0xDE


def test_making_a_line_that_is_up_level_triggered(pic: Pic) -> None:
    pic.set_line(5, True)
    pic.acknowledge()
    pic.write(MASTER, EOI)
    assert not pic.output()
    pic.write(ELCR, 0x20)
    assert pic.output()


def test_specific_eoi(pic: Pic) -> None:
    pulse(pic, 5)
    pic.acknowledge()
    pulse(pic, 3)
    pic.acknowledge()
    pic.write(MASTER, 0x60 | 5)
    assert see(pic, MASTER, READ_ISR) == 8
    assert pic.take_ended() == 1 << 5
    assert pic.take_ended() == 0


def test_automatic_eoi(pic: Pic) -> None:
    initialize(pic, icw4=3)
    pulse(pic, 3)
    assert pic.acknowledge() == 0x33
    assert see(pic, MASTER, READ_ISR) == 0
    assert pic.take_ended() == 1 << 3


def test_rotation_in_automatic_eoi(pic: Pic) -> None:
    initialize(pic, icw4=3)
    pic.write(MASTER, 0x80)
    pulse(pic, 3)
    pic.acknowledge()
    pulse(pic, 3)
    pulse(pic, 6)
    assert pic.acknowledge() == 0x36  # 3 is last now
    pic.write(MASTER, 0x00)
    pulse(pic, 0)
    assert pic.acknowledge() == 0x30  # from 7 on: 7, 0, ... 3
    assert pic.acknowledge() == 0x33


def test_rotation_on_eoi_and_set_priority(pic: Pic) -> None:
    pulse(pic, 3)
    pic.acknowledge()
    pic.write(MASTER, 0xA0)
    pulse(pic, 3)
    pulse(pic, 7)
    assert pic.acknowledge() == 0x37
    pic.write(MASTER, 0xE0 | 7)
    assert see(pic, MASTER, READ_ISR) == 0
    assert pic.acknowledge() == 0x33
    pic.write(MASTER, EOI)
    pic.write(MASTER, 0xC0 | 4)  # 4 is last, 5 first
    pulse(pic, 4)
    pulse(pic, 5)
    assert pic.acknowledge() == 0x35


def test_special_mask_mode(pic: Pic) -> None:
    pulse(pic, 3)
    pic.acknowledge()
    pulse(pic, 5)
    assert not pic.output()
    pic.write(MASTER + 1, 0x08)
    pic.write(MASTER, 0x68)
    assert pic.acknowledge() == 0x35  # 3 is masked, so it holds nobody up
    pic.write(MASTER, EOI)
    assert see(pic, MASTER, READ_ISR) == 8
    pic.write(MASTER, EOI)
    assert see(pic, MASTER, READ_ISR) == 8  # a masked line's service ends by name
    pic.write(MASTER, 0x60 | 3)
    assert see(pic, MASTER, READ_ISR) == 0
    pic.write(MASTER, 0x48)


def test_poll(pic: Pic) -> None:
    assert see(pic, MASTER, POLL) & 0x80 == 0
    pulse(pic, 3)
    assert see(pic, MASTER, POLL) == 0x83
    assert pic.read(MASTER) == 0  # one read only, then IRR again
    assert see(pic, MASTER, READ_ISR) == 8
    pulse(pic, 12)
    pic.write(SLAVE, POLL)
    assert pic.read(SLAVE + 1) == 0x84
    assert not pic.output()


def test_initialization_forgets(pic: Pic) -> None:
    pic.write(ELCR, 0x80)
    pulse(pic, 3)
    pic.acknowledge()
    pic.set_line(4, True)
    pic.set_line(7, True)
    pic.write(MASTER + 1, 0xFF)
    pic.write(MASTER, READ_ISR)
    initialize(pic)
    assert pic.read(MASTER + 1) == 0
    assert pic.read(MASTER) == 0x80  # IRR: the level, not the edge of a line that never fell
    assert see(pic, MASTER, READ_ISR) == 0
    pic.set_line(4, True)
    assert see(pic, MASTER, READ_IRR) == 0x80


def test_initialization_without_icw4(pic: Pic) -> None:
    pic.write(MASTER, 0x10)
    pic.write(MASTER + 1, 0x47)
    pic.write(MASTER + 1, 4)
    pic.write(MASTER + 1, 0xFE)
    assert pic.read(MASTER + 1) == 0xFE
    pulse(pic, 0)
    assert pic.acknowledge() == 0x40


def test_state(pic: Pic) -> None:
    pic.write(ELCR + 1, 0x04)
    pulse(pic, 3)
    pic.acknowledge()
    pic.set_line(10, True)
    other = Pic()
    for chip in (0, 1):
        assert len(pic.state(chip)) == 16
        other.restore(chip, pic.state(chip))
    assert other.acknowledge() == 0x3A
    other.write(MASTER, EOI)
    assert see(other, MASTER, READ_ISR) == 8
    assert see(other, SLAVE, READ_IRR) == 4


def test_restoring_what_is_no_state_is_refused(pic: Pic) -> None:
    with pytest.raises(BadInput, match="16"):
        pic.restore(0, b"\0" * 15)
    with pytest.raises(BadInput, match="no PIC 2"):
        pic.restore(2, b"\0" * 16)
    with pytest.raises(BadInput, match="no PIC 2"):
        pic.state(2)


POKES = st.lists(
    st.tuples(st.sampled_from(["port", "up", "down", "take"]), st.sampled_from(PORTS), st.integers(0, 255)), max_size=60
)


def poke(pic: Pic, pokes: list[tuple[str, int, int]]) -> None:
    for kind, port, value in pokes:
        if kind == "port":
            pic.write(port, value)
            assert 0 <= pic.read(port) <= 255
        elif kind == "take":
            assert 0 <= pic.acknowledge() <= 255
        else:
            pic.set_line(value & 15, kind == "up")


@given(POKES)
def test_any_poke_leaves_a_state_that_restores_to_itself(pokes: list[tuple[str, int, int]]) -> None:
    pic = Pic()
    poke(pic, pokes)
    state = [pic.state(0), pic.state(1)]
    other = Pic()
    for chip in (1, 0):
        other.restore(chip, state[chip])
    assert [other.state(0), other.state(1)] == state
    assert other.output() == pic.output()


@given(st.binary(min_size=32, max_size=32), POKES)
def test_any_bytes_restore(data: bytes, pokes: list[tuple[str, int, int]]) -> None:
    pic = Pic()
    pic.restore(0, data[:16])
    pic.restore(1, data[16:])
    once = [pic.state(0), pic.state(1)]
    for chip in (0, 1):
        pic.restore(chip, once[chip])
    assert [pic.state(0), pic.state(1)] == once
    poke(pic, pokes)
