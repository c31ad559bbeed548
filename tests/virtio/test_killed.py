"""A VM that is killed while its guest writes: what the guest was told is on the disk is there, and the files are whole.

The guest appends numbered lines to a file, with fsync after each, and says each number when it is there; beside it
another process makes and removes files. KVMKIT_KILLS=N tries more often than the few times of an ordinary run.
"""

from __future__ import annotations

import os
import random
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

pytestmark = [
    pytest.mark.guest,
    pytest.mark.skipif(not shutil.which("mke2fs"), reason="mke2fs is not installed (e2fsprogs)"),
]
MIB = 1 << 20
KILLS = int(os.environ.get("KVMKIT_KILLS", "2"))
RUN = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--memory", "256M", "--timeout", "100"]
SCRIPT = """
for i in $(seq 50); do test -b {device} && break; sleep 0.1; done
mount -t ext4 {device} /mnt || exit 1
while true; do
    j=$(((j + 1) % 16))
    head -c $((j * 10000)) /dev/urandom > /mnt/other.$j
    rm -f /mnt/other.$(((j * 7) % 16))
done &
n=$(cat /mnt/log 2>/dev/null | wc -l)
while true; do
    n=$((n + 1))
    echo "$n $(head -c 3000 /dev/urandom | base64 -w 0)" > /tmp/line
    dd if=/tmp/line of=/mnt/log oflag=append conv=notrunc,fsync bs=64k 2>/dev/null
    echo "there $n"
done
"""


def told(run: subprocess.Popen[str], seconds: float) -> int:
    """Kill it after that long since its first line; the last number it said was there."""
    assert run.stdout is not None
    last = 0
    end = None
    os.set_blocking(run.stdout.fileno(), True)
    for line in run.stdout:
        assert line.startswith("there "), line
        last = int(line.split()[1])
        end = end or time.monotonic() + seconds
        if time.monotonic() >= end:
            break
    run.send_signal(signal.SIGKILL)
    for line in run.stdout:  # what it said before that
        if line.startswith("there ") and line.endswith("\n"):
            last = int(line.split()[1])
    run.wait()
    run.stdout.close()
    return last


@pytest.mark.parametrize(("option", "device"), [("--disk", "/dev/vda"), ("--scsi", "/dev/sda")], ids=["blk", "scsi"])
def test_what_was_flushed_is_there_after_each_kill(tmp_path: Path, option: str, device: str) -> None:
    disk, log = tmp_path / "disk.raw", tmp_path / "log"
    with disk.open("wb") as file:
        file.truncate(48 * MIB)
    subprocess.run(["mke2fs", "-q", "-F", "-t", "ext4", str(disk)], check=True)
    generator = random.Random()
    before = 0
    for turn in range(KILLS):
        command = [*RUN, option, str(disk), "--", "sh", "-c", SCRIPT.format(device=device)]
        run = subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True)
        assert run.stderr is not None
        last = told(run, generator.uniform(0.1, 1.5))
        assert last > before, (turn, run.stderr.read())
        run.stderr.close()
        subprocess.run(["e2fsck", "-p", str(disk)], capture_output=True)  # replays the journal, as a mount does
        check = subprocess.run(["e2fsck", "-fn", str(disk)], capture_output=True, text=True)
        assert check.returncode == 0, (turn, check.stdout)
        subprocess.run(["debugfs", "-R", f"dump /log {log}", str(disk)], capture_output=True, check=True)
        lines = log.read_text().splitlines()
        assert len(lines) >= last, f"kill {turn}: {last} lines were there, {len(lines)} are"
        for number, line in enumerate(lines[:last], 1):
            assert line.split()[0] == str(number)
            assert len(line.split()[1]) == 4000
        before = last
