"""fio in Linux on tcg writes disks in random pieces, many at once, reads them back and compares."""

from __future__ import annotations

from pathlib import Path

import pytest
from tests.cli.calling import call
from tests.guest.tools import tool_disk

from kvmkit.errors import HostError
from kvmkit.guest import images

pytestmark = pytest.mark.guest
SIZE = 4 << 20
SCRIPT = """
for i in $(seq 50); do test -b /dev/sda -a -b /dev/vdc && break; sleep 0.1; done
mount -t ext4 -o ro /dev/vda /mnt || exit 1
cd /tmp
for device in /dev/vdb /dev/vdc /dev/sda; do
    /mnt/bin/fio --name=verified --filename=$device --ioengine=libaio --direct=1 --iodepth=16 --rw=randwrite \\
        --bsrange=512-64k --blockalign=512 --size=4M --verify=crc32c --do_verify=1 --verify_fatal=1 \\
        --trim_percentage=5 --output-format=terse --thread > out 2>&1 || { cat out; exit 1; }
    echo verified $device
done
"""


def test_fio_verifies_what_it_wrote(tmp_path: Path) -> None:
    try:
        images.ensure()
    except HostError as error:
        pytest.skip(f"the guest image can't be built here: {error}")
    tool_disk(tmp_path / "tools", "fio")
    for name in ("cached", "direct", "scsi"):
        (tmp_path / name).write_bytes(bytes(SIZE))
    options = ["--disk", f"{tmp_path / 'tools'},ro", "--disk", str(tmp_path / "cached")]
    options += ["--disk", f"{tmp_path / 'direct'},direct,serial=d", "--scsi", str(tmp_path / "scsi")]
    done = call("run", "--accel", "tcg", *options, "--", "sh", "-c", SCRIPT)
    assert done.returncode == 0, done
    assert done.stdout.split("\n")[:3] == [f"verified /dev/{name}" for name in ("vdb", "vdc", "sda")]
