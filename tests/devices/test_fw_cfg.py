"""fw_cfg, read as SeaBIOS and Linux read it: by ports, and by DMA whose every address is the guest's."""

from __future__ import annotations

import struct

import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.devices.fw_cfg import DMA, ERROR, MOST, PORTS, READ, SELECT, SKIP, WRITE, FwCfg
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory

FILES = {"etc/long": bytes(range(256)) * 20, "bootorder": b"/pci@i0cf8/scsi@1/disk@0,0\0"}
REQUEST = 0x1000


def device() -> tuple[FwCfg, GuestMemory]:
    memory = GuestMemory(1 << 20)
    return FwCfg(memory, FILES, cpus=3), memory


def by_port(chip: FwCfg, key: int, size: int) -> bytes:
    chip.write(0, 2, key)
    return bytes(chip.read(1, 1) for _ in range(size))


def by_dma(chip: FwCfg, memory: GuestMemory, control: int, length: int = 0, to: int = 0, at: int = REQUEST) -> int:
    """The control word that it leaves."""
    memory.write(at, struct.pack(">IIQ", control, length, to))
    chip.write(DMA, 4, int.from_bytes(struct.pack(">I", at >> 32), "little"))
    chip.write(DMA + 4, 4, int.from_bytes(struct.pack(">I", at & 0xFFFFFFFF), "little"))
    return int.from_bytes(memory.read(at, 4), "big")


def directory(chip: FwCfg) -> dict[str, tuple[int, int]]:
    """name -> (size, key)."""
    chip.write(0, 2, 0x19)
    count = int.from_bytes(bytes(chip.read(1, 1) for _ in range(4)), "big")
    found = {}
    for _ in range(count):
        size, key, _, name = struct.unpack(">IHH56s", bytes(chip.read(1, 1) for _ in range(64)))
        found[name.rstrip(b"\0").decode()] = (size, key)
    return found


def test_signature_features_and_processors() -> None:
    chip, _ = device()
    assert by_port(chip, 0, 4) == b"QEMU"
    assert by_port(chip, 1, 4) == b"\3\0\0\0"
    assert by_port(chip, 5, 2) == b"\3\0"
    assert struct.pack("<Q", chip.read(DMA, 8)) == b"QEMU CFG"
    assert struct.pack("<II", chip.read(DMA, 4), chip.read(DMA + 4, 4)) == b"QEMU CFG"


def test_files_by_port_and_zeros_after_their_end() -> None:
    chip, _ = device()
    found = directory(chip)
    assert {name: size for name, (size, _) in found.items()} == {name: len(data) for name, data in FILES.items()}
    for name, data in FILES.items():
        assert by_port(chip, found[name][1], len(data) + 3) == data + bytes(3)
    assert by_port(chip, 0x7777, 2) == bytes(2)


def test_files_by_dma_with_skip() -> None:
    chip, memory = device()
    key = directory(chip)["etc/long"][1]
    assert by_dma(chip, memory, SELECT | READ | key << 16, 10, 0x2000) == 0
    assert memory.read(0x2000, 10) == FILES["etc/long"][:10]
    assert by_dma(chip, memory, SKIP, 5) == 0
    assert by_dma(chip, memory, READ, 4, 0x3000) == 0
    assert memory.read(0x3000, 4) == FILES["etc/long"][15:19]
    assert by_dma(chip, memory, SELECT | WRITE | key << 16, 4, 0x3000) == ERROR
    assert by_port(chip, key, 4) == FILES["etc/long"][:4]


@pytest.mark.parametrize(
    ("length", "to"),
    [(16, 1 << 20), (16, (1 << 20) - 8), (16, 1 << 63), (16, (1 << 64) - 8), (MOST + 1, 0), (0xFFFFFFFF, 0)],
)
def test_dma_outside_ram_fails_and_touches_nothing(length: int, to: int) -> None:
    chip, memory = device()
    before = memory.read((1 << 20) - 8, 8)
    assert by_dma(chip, memory, SELECT | READ | 0x20 << 16, length, to) == ERROR
    assert memory.read((1 << 20) - 8, 8) == before


@pytest.mark.parametrize("at", [1 << 20, (1 << 20) - 8, (1 << 64) - 4])
def test_a_request_outside_ram_is_dropped(at: int) -> None:
    chip, memory = device()
    chip.write(DMA, 8, int.from_bytes(struct.pack(">Q", at), "little"))
    assert memory.read(0, 4096) == bytes(4096)


Writes = st.tuples(st.integers(0, PORTS - 1), st.sampled_from([1, 2, 4, 8]), st.integers(0, 2**64 - 1))


@given(st.lists(Writes, max_size=20), st.binary(max_size=64))
def test_nothing_a_guest_writes_is_too_much_for_it(writes: list[tuple[int, int, int]], request: bytes) -> None:
    chip, memory = device()
    memory.write(0, request)
    for offset, size, value in writes:
        chip.write(offset, size, value)
        assert 0 <= chip.read(offset, size) < 1 << 64
    assert by_port(chip, 0, 4) == b"QEMU"


def test_its_state_goes_on_where_it_was() -> None:
    chip, _ = device()
    key = directory(chip)["etc/long"][1]
    by_port(chip, key, 7)
    other, _ = device()
    other.restore(chip.state())
    assert other.read(1, 1) == FILES["etc/long"][7]
    with pytest.raises(BadInput, match="fw_cfg"):
        other.restore({"selected": -1})  # type: ignore[arg-type] # that is what is refused


def test_names_that_can_not_be() -> None:
    for name in ("", "x" * 56):
        with pytest.raises(BadInput, match="1 to 55"):
            FwCfg(GuestMemory(1 << 20), {name: b""})
