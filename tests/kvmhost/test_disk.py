"""Linux on kvm with disks: both transports, virtio-blk and virtio-scsi, what is read and written, and what it costs."""

from __future__ import annotations

import hashlib
import os
from pathlib import Path

import pytest

from kvmkit.machine.spec import Disk, ScsiDisk

from .linux import Linux

MIB = 1 << 20
SIZE = 4 * MIB
READY = "for i in $(seq 100); do test -b /dev/vdb -a -b /dev/sda && exit 0; sleep 0.1; done; exit 1"
COPIES = """
sha256sum < /dev/vda
dd if=/dev/vda of=/dev/vdb bs=64k oflag=direct 2>/dev/null
dd if=/dev/vda of=/dev/sda bs=64k conv=fsync 2>/dev/null
echo 3 > /proc/sys/vm/drop_caches
sha256sum < /dev/vdb; sha256sum < /dev/sda
"""
READS = "dd if=/dev/vda of=/dev/null bs=16k iflag=direct 2>/dev/null"


def exits(guest: Linux) -> int:
    """Exits to user space for memory: what a register of a device costs."""
    return guest.machine.report().exits.get("mmio", 0)


@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_linux_reads_and_writes_disks(tmp_path: Path, transport: str) -> None:
    names = ("source", "blk", "scsi")
    data = os.urandom(SIZE)
    for name in names:
        (tmp_path / name).write_bytes(data if name == "source" else bytes(SIZE))
    source, blk, scsi = (str(tmp_path / name) for name in names)
    with Linux(
        transport=transport, disks=(Disk(path=source, readonly=True), Disk(path=blk)), scsi=(ScsiDisk(path=scsi),)
    ) as guest:
        guest.sh(READY)
        assert guest.sh(COPIES).split()[::2] == [hashlib.sha256(data).hexdigest()] * 3
        disk = guest.machine.board.virtio.disks[0]
        requests, before = disk.queues[0].requests, exits(guest)
        guest.sh(READS)
        requests, spent = disk.queues[0].requests - requests, exits(guest) - before
        assert requests >= SIZE // (16 << 10)
        # By MSI-X a request costs none; virtio-mmio's interrupt handler reads and writes a register.
        assert spent <= (2 * requests if transport == "mmio" else 0) + 20, (spent, requests)
    assert (tmp_path / "blk").read_bytes() == data
    assert (tmp_path / "scsi").read_bytes() == data
