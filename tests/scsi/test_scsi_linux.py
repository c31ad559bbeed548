"""Linux drives the units: it reads, writes, trims, checks files and ejects; sg3-utils asks what Linux does not."""

from __future__ import annotations

import hashlib
import subprocess
from pathlib import Path

import pytest
from tests.cli.calling import call
from tests.guest.tools import find, tool_disk

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
TOOLS = ("sg_inq", "sg_vpd", "sg_readcap", "sg_luns", "sg_turs", "sg_modes", "sg_unmap", "sg_sync", "sg_write_same")
TOOLS += ("sg_requests", "sg_start", "sg_prevent", "sg_dd", "sg_reset", "lsblk", "blkdiscard", "e2fsck")
ASKED = """
set -e
mount -t ext4 -o ro /dev/vda /mnt
PATH=/mnt/bin:$PATH
lsblk -o NAME,SIZE,RO,TYPE,MODEL,SERIAL,DISC-MAX
sg_inq /dev/sda
for page in sv di bl bdc lbpv; do sg_vpd --page=$page /dev/sda; done
sg_readcap /dev/sda; sg_readcap --long /dev/sda; sg_readcap /dev/sr0
sg_luns /dev/sda; sg_turs /dev/sda; sg_requests /dev/sda; sg_modes -a /dev/sda
sg_sync /dev/sda; sg_unmap --lba=2048 --num=2048 -f /dev/sda
sg_write_same --lba=8192 --num=64 --xferlen=512 -i /dev/zero /dev/sda
for size in 6 10 12 16; do
    sg_dd if=/dev/sda of=/dev/sda bs=512 cdbsz=$size count=64 blk_sgio=1 seek=10240 2>&1
done
sg_dd if=/dev/sr0 of=/tmp/cd bs=2048 blk_sgio=1 count=64; sha256sum /tmp/cd
/mnt/bin/blkdiscard -z -o 12582912 -l 1048576 /dev/sda
e2fsck -fy /dev/sdb; e2fsck -fn /dev/sdb
exec 5</dev/sr0  # or Linux unlocks it when sg_prevent closes it
sg_prevent /dev/sr0; sg_start --eject /dev/sr0 && echo ejected though locked
sg_prevent --allow /dev/sr0; exec 5<&-; sg_start --eject /dev/sr0; sg_turs /dev/sr0 && echo still there
sg_start --load /dev/sr0; sg_turs /dev/sr0 || sg_turs /dev/sr0
sg_reset --device /dev/sda; sg_turs /dev/sda || sg_turs /dev/sda
echo asked
"""


def need_image() -> None:
    try:
        images.ensure()
    except HostError as error:
        pytest.skip(f"the guest image can't be built here: {error}")


@pytest.mark.parametrize("transport", ["mmio", "pci"])
def test_linux_reads_and_writes(tmp_path: Path, transport: str) -> None:
    need_image()
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


def test_every_command_as_sg3_utils_sends_it(tmp_path: Path) -> None:
    need_image()
    tools, disk, files, disc = (tmp_path / name for name in ("tools", "disk", "files", "disc"))
    tool_disk(tools, *TOOLS)
    content, song = bytearray(b"\x5a" * (16 << 20)), bytes(range(256)) * 2048
    disk.write_bytes(content)
    disc.write_bytes(song)
    files.write_bytes(bytes(8 << 20))
    subprocess.run([find("mke2fs"), "-q", "-F", "-t", "ext4", str(files)], check=True)
    units = ("--scsi", f"{disk},serial=S-1", "--scsi", str(files), "--scsi", f"{disc},cd")
    done = call("run", "--accel", "tcg", "--disk", f"{tools},ro", *units, "--", "sh", "-c", ASKED)
    out = done.stdout
    assert out.rstrip().endswith("asked"), f"{out}\n{done.stderr}"
    assert "still there" not in out
    assert "ejected though" not in out
    for said in (
        "Unit serial number: S-1",
        "Product identification: VIRTUAL DISK",
        "LBPU",
        "Number of logical blocks=32768",
    ):
        assert said in out, out
    assert hashlib.sha256(song[: 64 * 2048]).hexdigest() in out
    for first, count in ((2048, 2048), (8192, 64), (24576, 2048)):
        content[512 * first : 512 * (first + count)] = bytes(512 * count)
    assert disk.read_bytes() == content
