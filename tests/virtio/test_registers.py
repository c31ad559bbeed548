"""Whatever a driver writes to the registers, the device answers or stops, and can be started again."""

from __future__ import annotations

from pathlib import Path

from hypothesis import given, settings
from hypothesis import strategies as st

from kvmkit.block.file import DiskFile
from kvmkit.memory import GuestMemory
from kvmkit.testing.driver import MmioDriver
from kvmkit.virtio.blk import Blk

MIB = 1 << 20
REGISTERS = [0x14, 0x20, 0x24, 0x30, 0x38, 0x44, 0x50, 0x64, 0x70, 0xC0, *range(0x80, 0xB0, 4), 0x100, 0x120, 0x13C]

value = st.one_of(st.integers(0, 16), st.sampled_from([0x10000, 0x20000, 1 << 31, (1 << 32) - 1]))
step = st.tuples(
    st.booleans(),
    st.one_of(st.sampled_from(REGISTERS), st.integers(0, 0xFFC)),
    st.sampled_from([1, 2, 4, 4, 4, 4, 8]),
    value,
)
descriptors = st.binary(min_size=0, max_size=512)


@given(packed=st.booleans(), started=st.booleans(), steps=st.lists(step, max_size=60), junk=descriptors)
@settings(max_examples=120, deadline=None)
def test_registers(tmp_path_factory, packed: bool, started: bool, steps: list, junk: bytes) -> None:
    path: Path = tmp_path_factory.mktemp("disk") / "disk.raw"
    path.write_bytes(bytes(64 << 10))
    memory = GuestMemory(MIB)
    said: list[str] = []
    disk = Blk(memory, DiskFile(str(path)), queues=2, log=said.append)
    with MmioDriver(disk, memory, packed=packed) as driver:
        if started:
            driver.start()
        memory.write(driver.rings, junk)
        for write, offset, size, number in steps:
            if offset + size > 0x1000:
                continue
            if write:
                driver.set(offset, number & ((1 << 8 * size) - 1), size)
            else:
                driver.register(offset, size)
        assert len(said) <= 1 + sum(1 for write, offset, _, number in steps if write and offset == 0x70)
        driver.start()
        header = driver.request(0, (4).to_bytes(16, "little"), 1)
        assert header == b"\0"
        assert path.stat().st_size == 64 << 10
    memory.close()
