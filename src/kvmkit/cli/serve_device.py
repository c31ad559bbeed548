"""`kvmkit serve-device`: one of our devices for another VMM, by vhost-user."""

from __future__ import annotations

import argparse
import signal
import sys
from collections.abc import Callable
from typing import TYPE_CHECKING, Any

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
  kvmkit serve-device net switch=lan --socket /tmp/net.sock
  kvmkit serve-device console /tmp/hvc0.sock,log=/tmp/log.sock --socket /tmp/console.sock
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
    parser.add_argument(
        "what",
        metavar="WHAT",
        nargs="?",
        help="blk: a disk as --disk has it; net: as --net has it; console: [NAME=]SOCKET,...",
    )
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


def _net(what: str | None, memory: ForeignMemory, log: Callable[[str], None]) -> VirtioDevice:
    from kvmkit.machine.network import parse_network
    from kvmkit.machine.networks import connect, default_mac
    from kvmkit.net.options import parse_mac
    from kvmkit.virtio.net import Net

    network = parse_network(what or "user")
    connection = connect(network, 1)
    card = Net(memory, connection.backend, parse_mac(network.mac or default_mac()), mtu=network.mtu, log=log)
    if network.limited:
        network.limit(card)
    card.lost = connection.lost(card, log)
    return card


def _console(what: str | None, memory: ForeignMemory, log: Callable[[str], None]) -> VirtioDevice:
    from kvmkit.virtio.console import CONSOLE, Console

    if not what:
        raise BadInput("serve-device console: say where its ports lead: NAME=SOCKET, or SOCKET alone for hvc0")
    ports = []
    for part in what.split(","):
        name, equals, path = part.partition("=")
        if not name or (equals and not path):
            raise BadInput(f"serve-device console {what}: {part!r}: give NAME=SOCKET, or SOCKET alone for hvc0")
        ports.append((name, path) if equals else (CONSOLE, name))
    return Console(memory, sorted(ports, key=lambda port: port[0] != CONSOLE), log=log)


def _everything(card: VirtioDevice) -> None:
    """Which frames are for the guest is the frontend's to say: it has the control queue."""
    card.filter.set_mode(0, True)  # type: ignore[attr-defined]  # a Net


NET_CONTROL = 0xFE << 16 | 1 << 2 | 1 << 3
"""Features of a card that are the frontend's: the control queue and what goes by it, the link's status, the MTU."""

OPTIONS: dict[str, dict[str, Any]] = {"net": {"withheld": NET_CONTROL | 1 << 16, "negotiated": _everything}}

KINDS: dict[str, Callable[[str | None, ForeignMemory, Callable[[str], None]], VirtioDevice]] = {
    "blk": _blk,
    "console": _console,
    "net": _net,
    "rng": _rng,
}
"""What makes each device; a new kind is one line here."""


def run(args: argparse.Namespace) -> int:
    from kvmkit.virtio.vhost_user.server import Server

    def log(text: str) -> None:
        sys.stderr.write(f"kvmkit: {text}\n")

    make = KINDS[args.kind]
    server = Server(args.socket, lambda memory, log: make(args.what, memory, log), log, **OPTIONS.get(args.kind, {}))
    try:
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, lambda *_: server.stop())
        log(f"{server.device.name} is served at {args.socket}; Ctrl-C ends that")
        server.run()
    finally:
        server.close()
    return 0
