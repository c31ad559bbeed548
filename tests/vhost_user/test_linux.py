"""Linux as the driver of devices that other processes serve."""

from __future__ import annotations

import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

pytestmark = pytest.mark.guest
RUN = [sys.executable, "-m", "kvmkit", "run", "--accel", "tcg", "--timeout", "100"]
MIB = 1 << 20
needs_daemon = pytest.mark.skipif(
    not shutil.which("qemu-storage-daemon"), reason="qemu-storage-daemon is not installed (qemu-system-common)"
)


class StorageDaemon:
    """QEMU's, with a qcow2 image of 32 MiB."""

    def __init__(self, directory: Path) -> None:
        self.image, self.socket = directory / "a.qcow2", directory / "s"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(self.image), "32M"], check=True)
        self.start()

    def start(self) -> None:
        export = f"vhost-user-blk,id=e,node-name=q,addr.type=unix,addr.path={self.socket},writable=on,num-queues=2"
        file = f"file,filename={self.image},node-name=f,locking=off"
        options = ["--blockdev", file, "--blockdev", "qcow2,file=f,node-name=q", "--export", export]
        self.process = subprocess.Popen(["qemu-storage-daemon", *options])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()


@pytest.fixture
def daemon(tmp_path: Path) -> Iterator[StorageDaemon]:
    daemon = StorageDaemon(tmp_path)
    yield daemon
    daemon.stop()


@needs_daemon
def test_nothing_is_lost_with_a_storage_daemon(daemon: StorageDaemon) -> None:
    script = """
        head -c 4000000 /dev/urandom > /tmp/x; echo ready
        for i in 1 2 3 4 5 6; do
            dd if=/tmp/x of=/dev/vda bs=64k seek=$i conv=fsync 2>/dev/null || echo failed
        done
        echo 3 > /proc/sys/vm/drop_caches
        dd if=/dev/vda bs=64k skip=6 2>/dev/null | head -c 4000000 | cmp - /tmp/x && echo same
    """
    options = ["--vhost-user", f"blk={daemon.socket},queues=2", "--transport", "pci"]
    run = subprocess.Popen(
        [*RUN, *options, "--", "sh", "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )
    assert run.stdout is not None
    assert run.stdout.readline() == "ready\n"
    for _ in range(2):
        time.sleep(0.3)
        daemon.stop()
        time.sleep(0.1)
        daemon.start()
    out, said = run.communicate()
    assert (out, run.returncode) == ("same\n", 0), said
    assert "is gone" in said
    assert "serves it again" in said
    daemon.stop()
    subprocess.run(["qemu-img", "check", "-q", str(daemon.image)], check=True)
