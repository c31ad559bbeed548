"""Linux on kvm with disks: both transports, virtio-blk (one by vhost-user) and virtio-scsi, and what it costs."""

from __future__ import annotations

import hashlib
import os
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from kvmkit.machine.spec import Disk, ScsiDisk
from kvmkit.machine.vhost_user import VhostUser

from .linux import Linux

MIB = 1 << 20
SIZE = 4 * MIB
READY = "for i in $(seq 100); do test -b /dev/vdc -a -b /dev/sda && exit 0; sleep 0.1; done; exit 1"
COPIES = """
sha256sum < /dev/vda
dd if=/dev/vda of=/dev/vdb bs=64k oflag=direct 2>/dev/null
dd if=/dev/vda of=/dev/sda bs=64k conv=fsync 2>/dev/null
dd if=/dev/vda of=/dev/vdc bs=64k conv=fsync 2>/dev/null
echo 3 > /proc/sys/vm/drop_caches
sha256sum < /dev/vdb; sha256sum < /dev/sda; sha256sum < /dev/vdc
"""
READS = "dd if=/dev/vda of=/dev/null bs=16k iflag=direct 2>/dev/null"


def exits(guest: Linux) -> int:
    """Exits to user space for memory: what a register of a device costs."""
    return guest.machine.report().exits.get("mmio", 0)


@contextmanager
def served(disk: Path, socket: str) -> Iterator[None]:
    """A disk that another process serves."""
    command = [sys.executable, "-m", "kvmkit", "serve-device", "blk", str(disk), "--socket", socket]
    server = subprocess.Popen(command, stderr=subprocess.PIPE, text=True)
    assert server.stderr is not None
    assert "is served at" in server.stderr.readline()
    yield
    server.send_signal(signal.SIGINT)
    assert server.wait(30) == 0
    server.stderr.close()


@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_linux_reads_and_writes_disks(tmp_path: Path, transport: str) -> None:
    names = ("source", "blk", "scsi", "served")
    data = os.urandom(SIZE)
    for name in names:
        (tmp_path / name).write_bytes(data if name == "source" else bytes(SIZE))
    source, blk, scsi, _ = (str(tmp_path / name) for name in names)
    options = {
        "transport": transport,
        "disks": (Disk(path=source, readonly=True), Disk(path=blk)),
        "scsi": (ScsiDisk(path=scsi),),
        "vhost_user": (VhostUser(kind="blk", socket=str(tmp_path / "s")),),
    }
    with served(tmp_path / "served", str(tmp_path / "s")), Linux(**options) as guest:
        guest.sh(READY)
        assert guest.sh(COPIES).split()[::2] == [hashlib.sha256(data).hexdigest()] * 4
        disk = guest.machine.board.virtio.disks[0]
        requests, before = disk.queues[0].requests, exits(guest)
        guest.sh(READS)
        requests, spent = disk.queues[0].requests - requests, exits(guest) - before
        assert requests >= SIZE // (16 << 10)
        # By MSI-X a request costs none; virtio-mmio's interrupt handler reads and writes a register.
        assert spent <= (2 * requests if transport == "mmio" else 0) + 20, (spent, requests)
    assert (tmp_path / "blk").read_bytes() == data
    assert (tmp_path / "scsi").read_bytes() == data
    assert (tmp_path / "served").read_bytes() == data
