"""`kvmkit serve-device`: one of our devices for another VMM, by vhost-user."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmkit.cli.verbs import VERBS
from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.memory.foreign import ForeignMemory
    from kvmkit.virtio.device import VirtioDevice

SUMMARY = VERBS["serve-device"].summary

DESCRIPTION = """\
Serve a device's queues to a VMM that has vhost-user: QEMU, cloud-hypervisor, crosvm, or another kvmkit. One VMM
after the other can have it, until Ctrl-C or SIGTERM. The VMM must share its guest's memory."""

EPILOG = """\
examples:
  kvmkit serve-device blk disk.raw --socket /tmp/disk.sock
  kvmkit serve-device blk disk.raw,ro,queues=4,iops=500 --socket /tmp/disk.sock
  kvmkit serve-device rng --socket /tmp/rng.sock

with QEMU:
  qemu-system-x86_64 -m 512M -object memory-backend-memfd,id=ram,size=512M,share=on -machine q35,memory-backend=ram \\
      -chardev socket,id=c,path=/tmp/disk.sock -device vhost-user-blk-pci,chardev=c ...
with kvmkit:
  kvmkit run --vhost-user blk=/tmp/disk.sock

exit status: 0 at the end; 1 the host refuses something; 2 bad input. More: docs/vhost-user.md."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kvmkit serve-device KIND [WHAT] --socket PATH"
    parser.description = DESCRIPTION
    parser.epilog = EPILOG
    parser.add_argument("kind", metavar="KIND", choices=sorted(KINDS), help=", ".join(sorted(KINDS)))
    parser.add_argument("what", metavar="WHAT", nargs="?", help="blk: PATH[,ro][,direct][,queues=N][,LIMIT]...")
    parser.add_argument("--socket", metavar="PATH", required=True, help="where it is offered")


def _blk(what: str | None, memory: ForeignMemory, log: Callable[[str], None]) -> VirtioDevice:
    from kvmkit.block.file import DiskFile
    from kvmkit.machine import parse_disk
    from kvmkit.virtio.blk import Blk

    if not what:
        raise BadInput("serve-device blk: say which disk: kvmkit serve-device blk disk.raw --socket PATH")
    disk = parse_disk(what)
    disk.check()
    if disk.served or disk.snapshot:
        raise BadInput(f"serve-device blk {what}: raw disks only; others by qemu-storage-daemon itself")
    file = DiskFile(disk.path, readonly=disk.readonly, direct=disk.direct, raw=disk.format == "raw")
    try:
        device = Blk(
            memory, file, name=f"disk {disk.path}", serial=disk.serial or "kvmkit", queues=disk.queues or 1, log=log
        )
    except BaseException:
        file.close()
        raise
    disk.limit(device)
    return device


def _rng(what: str | None, memory: ForeignMemory, log: Callable[[str], None]) -> VirtioDevice:
    from kvmkit.virtio.rng import Rng

    if what:
        raise BadInput(f"serve-device rng: takes nothing more, not {what!r}")
    return Rng(memory, log=log)


KINDS: dict[str, Callable[[str | None, ForeignMemory, Callable[[str], None]], VirtioDevice]] = {
    "blk": _blk,
    "rng": _rng,
}
"""What makes each device; a new kind is one line here."""


def run(args: argparse.Namespace) -> int:
    from kvmkit.virtio.vhost_user.server import Server

    def log(text: str) -> None:
        sys.stderr.write(f"kvmkit: {text}\n")

    make = KINDS[args.kind]
    server = Server(args.socket, lambda memory, log: make(args.what, memory, log), log)
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.stop())
        log(f"{server.device.name} is served at {args.socket}; Ctrl-C ends that")
        server.run()
    finally:
        server.close()
    return 0
