"""QEMU's storage daemon."""

from __future__ import annotations

import signal
import subprocess
from pathlib import Path


class StorageDaemon:
    """QEMU's, with a qcow2 image of 128 MiB."""

    def __init__(self, directory: Path) -> None:
        self.image, self.socket = directory / "a.qcow2", directory / "s"
        subprocess.run(["qemu-img", "create", "-q", "-f", "qcow2", str(self.image), "128M"], check=True)
        self.start()

    def start(self) -> None:
        export = f"vhost-user-blk,id=e,node-name=q,addr.type=unix,addr.path={self.socket},writable=on,num-queues=2"
        file = f"file,filename={self.image},node-name=f,locking=off"
        options = ["--blockdev", file, "--blockdev", "qcow2,file=f,node-name=q", "--export", export]
        self.process = subprocess.Popen(["qemu-storage-daemon", *options])

    def stop(self) -> None:
        self.process.send_signal(signal.SIGKILL)
        self.process.wait()
