"""Linux drives the units: it reads, writes, trims and ejects."""

from __future__ import annotations

import hashlib
from pathlib import Path

import pytest
from tests.cli.calling import call

from kvmkit.errors import HostError
from kvmkit.guest import images

pytestmark = pytest.mark.guest
SCRIPT = """
for i in 1 2 3 4 5 6 7 8 9 10; do test -b /dev/sda -a -b /dev/sr0 && break; sleep 0.2; done
sha256sum /dev/sda /dev/sr0
dd if=/dev/sr0 of=/dev/sda bs=64k count=8 conv=fsync,notrunc 2>/dev/null
blkdiscard -o 1048576 -l 1048576 /dev/sda || echo no blkdiscard
cat /sys/block/sda/queue/discard_max_bytes /sys/block/sda/device/vendor
eject /dev/sr0 || echo no eject
dmesg | grep -E 'sd |sr |scsi|I/O error'
"""


@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_linux_reads_and_writes(tmp_path: Path, transport: str) -> None:
    try:
        images.ensure()
    except HostError as error:
        pytest.skip(f"the guest image can't be built here: {error}")
    disk, disc = tmp_path / "disk", tmp_path / "disc"
    content, song = b"\x5a" * (4 << 20), bytes(range(256)) * 8192
    disk.write_bytes(content)
    disc.write_bytes(song)
    options = ("--scsi", str(disk), "--scsi", f"{disc},cd")
    done = call("run", "--accel", "tcg", "--transport", transport, *options, "--", "sh", "-c", SCRIPT)
    assert done.returncode == 0, done
    assert f"{hashlib.sha256(content).hexdigest()}  /dev/sda" in done.stdout, done.stdout
    assert f"{hashlib.sha256(song).hexdigest()}  /dev/sr0" in done.stdout
    assert "Direct-Access     KVMKIT   VIRTUAL DISK" in done.stdout
    assert "supports DPO and FUA" in done.stdout
    assert "I/O error" not in done.stdout
    changed = disk.read_bytes()
    assert changed[: 512 << 10] == song[: 512 << 10]
    if "no blkdiscard" not in done.stdout:
        assert changed[1 << 20 : 2 << 20] == bytes(1 << 20)
    assert changed[2 << 20 :] == content[2 << 20 :]
    assert disc.read_bytes() == song
