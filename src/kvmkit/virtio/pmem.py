"""Persistent memory: a file of the host's that the guest uses as memory. Source: virtio 1.2, 5.19.

The guest reads and writes it without any request; a flush, the one request there is, has the file written to its disk.
"""

from __future__ import annotations

import os
import struct
from collections.abc import Callable

from kvmkit.block.file import DiskFile
from kvmkit.errors import BadInput
from kvmkit.memory import GuestMemory

from .device import VirtioDevice
from .queue import Queue

KIND = 27
DRIVER = "CONFIG_VIRTIO_PMEM (virtio_pmem) and CONFIG_BLK_DEV_PMEM (nd_pmem)"
QUEUE = 64
FLUSH = 0
ALIGN = 2 << 20
"""What Linux wants of a piece of memory that is to have page structures."""


def open_file(path: str, *, readonly: bool) -> DiskFile:
    """The file, locked as a disk is. Raises BadInput for one that can't be."""
    file = DiskFile(path, readonly=readonly, raw=True)
    if file.size % ALIGN:
        file.close()
        raise BadInput(
            f"--pmem {path}: its {file.size} bytes are not a multiple of 2 MiB: truncate -s %2M {path} makes it one"
        )
    return file


class Pmem(VirtioDevice):
    """`file` behind the RAM of `memory`, which has room for it. With `file.readonly`, writes are the guest's alone."""

    def __init__(
        self, memory: GuestMemory, file: DiskFile, *, name: str = "pmem", log: Callable[[str], None] | None = None
    ) -> None:
        self.file = file
        self.address = memory.place(file.fd, file.size, file.readonly)
        config = struct.pack("<QQ", self.address, file.size)
        super().__init__(memory, KIND, [QUEUE], name=name, driver=DRIVER, config=config, log=log)

    def handle(self, queue: Queue) -> None:
        while (request := queue.get()) is not None:
            data, _ = request
            queue.release(struct.pack("<i", self._flush() if data[:4] == struct.pack("<I", FLUSH) else -1))

    def _flush(self) -> int:
        if self.file.readonly:
            return 0
        try:
            os.fdatasync(self.file.fd)
        except OSError:
            return -1
        return 0

    def close(self) -> None:
        if not self.closed:
            super().close()
            self.file.close()
