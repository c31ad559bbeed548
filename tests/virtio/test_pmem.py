"""Persistent memory: where it is, what is kept, and Linux with a file system on it."""

from __future__ import annotations

import os
import shutil
import struct
import subprocess
import sys
from pathlib import Path

import pytest

from kvmkit.errors import BadInput
from kvmkit.machine import parse_pmem
from kvmkit.memory import HIGH_RAM, HOLE, GuestMemory
from kvmkit.memory.backing import allocate
from kvmkit.testing import MmioDriver
from kvmkit.virtio.pmem import Pmem, open_file

MIB = 1 << 20


@pytest.mark.parametrize("shared", [False, True], ids=["private RAM", "shared RAM"])
def test_memory_and_flush(tmp_path: Path, shared: bool) -> None:
    path, other = tmp_path / "a", tmp_path / "b"
    path.write_bytes(b"start" + bytes(2 * MIB - 5))
    other.write_bytes(b"other" + bytes(4 * MIB - 5))
    memory = allocate(8 * MIB, shared=shared, behind=6 * MIB)
    first = Pmem(memory, open_file(str(path), readonly=False))
    second = Pmem(memory, open_file(str(other), readonly=True))
    assert (first.address, second.address) == (HIGH_RAM, HIGH_RAM + 2 * MIB)
    assert memory.regions() == memory.regions()[:1]
    assert sum(size for _, _, size in memory.regions()) == 8 * MIB
    assert memory.read(first.address, 5) == b"start"
    assert memory.read(second.address, 5) == b"other"
    with pytest.raises(ValueError, match="no guest RAM"):
        memory.read(HIGH_RAM + 6 * MIB - 1, 2)
    memory.write(first.address + 100, b"kept")
    memory.write(second.address, b"thrown away")
    with MmioDriver(first, memory) as driver:
        driver.start()
        place = [driver.register(0x100 + 4 * i) for i in range(4)]
        assert (place[0] | place[1] << 32, place[2] | place[3] << 32) == (HIGH_RAM, 2 * MIB)
        assert driver.request(0, struct.pack("<I", 0), 4) == bytes(4)
        assert driver.request(0, struct.pack("<I", 7), 4) == b"\xff" * 4
        assert driver.request(0, b"", 4) == b"\xff" * 4
    assert path.read_bytes()[100:104] == b"kept"
    second.close()
    memory.close()
    assert other.read_bytes()[:5] == b"other"


def test_places_behind_much_ram() -> None:
    for size in (HOLE, HOLE + 5 * MIB):
        memory = GuestMemory(size, behind=2 * MIB)
        fd = os.memfd_create("x")
        os.ftruncate(fd, 2 * MIB)
        address = memory.place(fd, 2 * MIB, False)
        assert address % (128 * MIB) == 0
        assert address >= HIGH_RAM + size - HOLE
        memory.write(address, b"here")
        assert os.pread(fd, 4, 0) == b"here"
        with pytest.raises(BadInput):
            memory.place(fd, 4096, False)
        os.close(fd)
        memory.close()


def test_what_can_not_be(tmp_path: Path) -> None:
    odd = tmp_path / "odd"
    odd.write_bytes(bytes(4096))
    with pytest.raises(BadInput, match="multiple of 2 MiB"):
        parse_pmem(str(odd)).check()
    with pytest.raises(BadInput, match="no such file"):
        parse_pmem(f"{tmp_path}/none").check()
    for text in ("", ",ro", "x,rw"):
        with pytest.raises(BadInput, match="give a path"):
            parse_pmem(text)
    with pytest.raises(BadInput, match="ordinary pages"):
        allocate(8 * MIB, path="/dev/shm", behind=2 * MIB)


@pytest.mark.guest
@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="mkfs.ext4 is not installed (e2fsprogs)")
def test_linux_keeps_a_file_system_in_it(tmp_path: Path) -> None:
    pmem = tmp_path / "pmem"
    pmem.write_bytes(bytes(32 * MIB))
    subprocess.run(["mkfs.ext4", "-q", "-F", "-b", "4096", str(pmem)], check=True)
    script = """
        cat /sys/block/pmem0/size
        mount -t ext4 -o dax /dev/pmem0 /mnt && cp /bin/busybox /mnt && sync
        cmp /mnt/busybox /bin/busybox && echo same
        /mnt/busybox sh -c 'echo run from it'; grep -o 'dax[=a-z]*' /proc/mounts; umount /mnt
        cat /sys/class/input/input*/name
    """
    options = ["--pmem", str(pmem), "--input", "keyboard", "--input", "tablet"]
    run = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--timeout", "100", *options]
    done = subprocess.run([*run, "--", "sh", "-c", script], capture_output=True, text=True)
    lines = done.stdout.splitlines()
    assert lines[0] == str(32 * MIB // 512), done.stderr
    assert lines[1:3] == ["same", "run from it"], done.stdout + done.stderr
    assert lines[3].startswith("dax")
    assert {"kvmkit keyboard", "kvmkit tablet"} <= set(lines[4:])
    check = subprocess.run(["e2fsck", "-fn", str(pmem)], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
