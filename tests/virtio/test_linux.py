"""Linux as the driver: a disk read, written, and whole after its VM is killed."""

from __future__ import annotations

import hashlib
import os
import shutil
import signal
import subprocess
import sys
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest
MIB = 1 << 20
RUN = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--timeout", "100"]


def test_a_disk_both_ways_and_entropy(tmp_path: Path) -> None:
    source, target = tmp_path / "source.raw", tmp_path / "target.raw"
    data = os.urandom(6 * MIB)
    source.write_bytes(data)
    target.write_bytes(bytes(8 * MIB))
    script = """
        sha256sum < /dev/vda
        dd if=/dev/vda of=/dev/vdb bs=64k seek=3 conv=fsync 2>/dev/null
        cat /sys/block/vda/ro /sys/block/vdb/ro
        cat /sys/block/vdb/serial; echo
        dd if=/dev/hwrng bs=64 count=1 2>/dev/null | wc -c
        echo x > /dev/vda || echo refused
    """
    disks = ["--disk", f"{source},ro,direct", "--disk", f"{target},serial=kept"]
    done = subprocess.run([*RUN, *disks, "--rng", "--", "sh", "-c", script], capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    digest = hashlib.sha256(data).hexdigest()
    assert done.stdout.split() == [digest, "-", "1", "0", "kept", "64", "refused"]
    assert target.read_bytes() == bytes(3 << 16) + data + bytes(2 * MIB - (3 << 16))


@pytest.mark.skipif(not shutil.which("mkfs.ext4"), reason="mkfs.ext4 is not installed (e2fsprogs)")
def test_what_is_flushed_stays_when_the_vm_is_killed(tmp_path: Path) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(32 * MIB))
    subprocess.run(["mkfs.ext4", "-q", "-F", str(disk)], check=True)
    script = """
        mount -t ext4 /dev/vda /mnt && head -c 3000000 /dev/urandom > /mnt/kept && sync && sha256sum < /mnt/kept
        while true; do head -c 100000 /dev/urandom > /mnt/lost.$((i++ % 8)); done
    """
    run = subprocess.Popen([*RUN, "--disk", str(disk), "--", "sh", "-c", script], stdout=subprocess.PIPE, text=True)
    assert run.stdout is not None
    digest = run.stdout.readline().split()[0]
    run.send_signal(signal.SIGKILL)
    run.wait()
    run.stdout.close()
    subprocess.run(["e2fsck", "-p", str(disk)], capture_output=True)  # replays the journal
    check = subprocess.run(["e2fsck", "-fn", str(disk)], capture_output=True, text=True)
    assert check.returncode == 0, check.stdout
    out = tmp_path / "kept"
    subprocess.run(["debugfs", "-R", f"dump /kept {out}", str(disk)], capture_output=True, check=True)
    assert hashlib.sha256(out.read_bytes()).hexdigest() == digest
    assert len(out.read_bytes()) == 3_000_000


@pytest.mark.parametrize("command", [["--", "true"], []], ids=["command", "kernel alone"])
def test_a_guest_without_the_driver_is_told_of(tmp_path: Path, command: list[str]) -> None:
    disk = tmp_path / "disk.raw"
    disk.write_bytes(bytes(MIB))
    from kvmkit.guest.images import ensure

    image = ensure()
    options = ["--disk", str(disk)]
    if command:
        options += ["--append", "initcall_blacklist=acpi_init"]
    else:
        options += ["--kernel", str(image.kernel), "--append", "console=ttyS0 panic=-1"]
    done = subprocess.run([*RUN, *options, *command], capture_output=True, text=True, timeout=110)
    assert f"the guest has not taken disk {disk} into use: its kernel needs CONFIG_VIRTIO_BLK" in done.stderr
