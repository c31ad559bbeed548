"""The flash chip, driven as OVMF drives it."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.devices.flash import BLOCK, READY, Command, Flash
from kvmkit.errors import BadInput

SIZE = 4 * BLOCK
CODE = b"what stands behind it"


def chip() -> tuple[Flash, bytearray]:
    data = bytearray(i * 7 & 0xFF for i in range(SIZE))
    return Flash(data, data + CODE), data


def program(flash: Flash, at: int, data: bytes) -> None:
    for i, byte in enumerate(data):
        flash.write(at + i, 1, Command.PROGRAM)
        flash.write(at + i, 1, byte)
    flash.write(at + len(data) - 1, 1, Command.READ_ARRAY)


def test_it_reads_as_memory_at_any_width() -> None:
    flash, data = chip()
    for size in (1, 2, 4, 8):
        assert flash.read(5, size) == int.from_bytes(data[5 : 5 + size], "little")


def test_a_program_writes_what_follows_it_and_nothing_else() -> None:
    flash, data = chip()
    before = bytes(data)
    program(flash, 100, b"what it remembers")
    assert bytes(data[100:117]) == b"what it remembers"
    assert bytes(data[:100] + data[117:]) == before[:100] + before[117:]
    assert flash.read(100, 1) == ord("w")


def test_a_block_is_erased_when_that_is_confirmed() -> None:
    flash, data = chip()
    before = bytes(data)
    flash.write(BLOCK + 17, 1, Command.ERASE)
    flash.write(BLOCK + 17, 1, Command.READ_ARRAY)
    assert bytes(data) == before
    flash.write(BLOCK + 17, 1, Command.ERASE)
    flash.write(BLOCK + 17, 1, Command.CONFIRM)
    assert bytes(data) == before[:BLOCK] + b"\xff" * BLOCK + before[2 * BLOCK :]
    assert flash.read(0, 1) == before[0]


def test_ovmf_tells_it_from_ram_and_rom() -> None:
    """It clears the status, reads memory, asks for the status and finds it clear."""
    flash, data = chip()
    assert data[3] not in (0, Command.CLEAR_STATUS, Command.READ_STATUS)
    flash.write(3, 1, Command.CLEAR_STATUS)
    assert flash.read(3, 1) == data[3]
    flash.write(3, 1, Command.READ_STATUS)
    assert flash.read(3, 1) == 0
    flash.write(3, 1, Command.READ_ARRAY)
    assert flash.read(3, 1) == data[3]
    program(flash, 0, b"x")
    flash.write(3, 1, Command.READ_STATUS)
    assert flash.read(3, 1) == READY


def test_what_stands_behind_it_stays() -> None:
    data = bytearray(SIZE)
    view = data + CODE
    flash = Flash(data, view)
    for command in Command:
        flash.write(SIZE - 1, 8, command)
        flash.write(SIZE - 1, 8, 0xD0D0D0D0D0D0D0D0)
        assert view[SIZE:] == CODE
        assert len(view) == SIZE + len(CODE)


def test_its_identity() -> None:
    flash, _ = chip()
    flash.write(0, 1, Command.READ_IDENTITY)
    assert (flash.read(0, 1), flash.read(1, 1)) == (0x89, 0x18)


accesses = st.lists(
    st.tuples(
        st.integers(0, SIZE - 1),
        st.sampled_from((1, 2, 4, 8)),
        st.one_of(st.sampled_from([*Command]), st.integers(0, 2**64 - 1)),
    ),
    max_size=60,
)


@given(accesses)
def test_whatever_a_guest_writes_its_size_stays_and_its_state_goes_on(
    writes: list[tuple[int, int, int]],
) -> None:
    flash, data = chip()
    for offset, size, value in writes:
        flash.write(offset, size, value)
        assert 0 <= flash.read(offset, size) < 1 << 64
        assert len(data) == SIZE
    other = Flash(data, bytearray(SIZE))
    other.restore(flash.state())
    assert [other.read(at, 1) for at in range(16)] == [flash.read(at, 1) for at in range(16)]


@pytest.mark.parametrize("state", [{"command": 256}, {"waiting": 2}, {"status": -1}, {"more": 1}])
def test_a_state_that_can_not_be_is_refused(state: dict[str, int]) -> None:
    with pytest.raises(BadInput, match="flash"):
        chip()[0].restore(state)  # type: ignore[arg-type] # what JSON makes of one
