"""QEMU's -drive, -blockdev, -device, -netdev and -nic: front ends and what stands behind them, brought together."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import msgspec

from kvmkit.errors import BadInput
from kvmkit.manager.description import Disk, Forward, Network
from kvmkit.manager.qemu_options import Pairs, refuse

FORMATS = ("", "raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "luks")
CACHES = ("", "none", "writeback", "writethrough", "directsync", "unsafe")
LETTERS = {"hda": 0, "hdb": 1, "hdc": 2, "hdd": 3, "cdrom": 2}
MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE | re.ASCII)

# Device names end in how they are attached, which is ours to choose.
SUFFIXES = ("-pci-non-transitional", "-pci-transitional", "-pci", "-device", "-ccw")


class Devices:
    def __init__(self) -> None:
        self.disks: list[tuple[int | None, Disk]] = []  # (place on the IDE bus, disk)
        self.drives: dict[str, Disk] = {}  # if=none and -blockdev, by id
        self.nodes: dict[str, str] = {}  # -blockdev protocol nodes: name -> path
        self.node_flags: dict[str, bool] = {}
        self.flashes: list[tuple[int, str]] = []
        self.flash_nodes: list[str] = []
        self.networks: list[Network] = []
        self.back_ends: dict[str, Network] = {}
        self.used: set[str] = set()
        self.waiting: list[tuple[str, Pairs]] = []
        self.no_network = False
        self.rngs: set[str] = set()
        self.rng = self.balloon = self.graphics = self.debug_exit = False
        self.input: list[str] = []
        self.vsock: int | None = None

    def drive_letter(self, letter: str, path: str) -> None:
        media: Literal["cdrom", "disk"] = "cdrom" if letter == "cdrom" else "disk"
        disk = Disk(path=_path(path, letter), bus="ide", media=media, readonly=media == "cdrom")
        self.disks.append((LETTERS[letter], disk))

    def drive(self, argument: str) -> None:
        pairs = Pairs("drive", argument)
        interface = pairs.choice("if", ("virtio", "ide", "scsi", "none", "pflash"), "ide")
        media = pairs.choice("media", ("disk", "cdrom"), "disk")
        path = _path(pairs.get("file"), "drive")
        unit = pairs.number("unit", 0, 255)
        readonly = pairs.flag("readonly") or pairs.flag("read-only") or media == "cdrom"
        if interface == "pflash":
            pairs.ignore("format", "index", "id")
            self.flash(path, readonly, unit)
            pairs.finish()
            return
        index = pairs.number("index", 0, 255)
        id = pairs.get("id")
        disk = Disk(
            path=path,
            format=pairs.choice("format", FORMATS),
            bus="virtio" if interface in ("virtio", "none") else "scsi" if interface == "scsi" else "ide",
            media="cdrom" if media == "cdrom" else "disk",
            readonly=readonly,
            snapshot=pairs.flag("snapshot"),
            cache=pairs.choice("cache", CACHES),
            serial=pairs.get("serial"),
        )
        pairs.ignore("aio", "discard", "detect-zeroes", "werror", "rerror", "copy-on-read", "bus")
        pairs.finish()
        if interface == "none":
            if not id:
                raise BadInput(f"qemu -drive {argument}: if=none needs an id= for the -device that uses it")
            self.drives[id] = disk
        else:
            self.disks.append((index, disk))

    def flash(self, path: str, readonly: bool, unit: int | None = None) -> None:
        self.flashes.append((len(self.flashes) if unit is None else unit, _path(path, "pflash")))

    def flash_node(self, node: str) -> None:
        self.flash_nodes.append(node)

    def blockdev(self, argument: str) -> None:
        values = _json(argument, "blockdev") if argument.startswith("{") else None
        pairs = Pairs("blockdev", argument if values is None else "", "driver") if values is None else _pairs(values)
        driver, name = pairs.need("driver"), pairs.need("node-name")
        readonly = pairs.flag("read-only")
        pairs.ignore("discard", "cache.direct", "cache.no-flush", "auto-read-only", "detect-zeroes", "aio", "locking")
        if driver in ("file", "host_device"):
            self.nodes[name] = _path(pairs.need("filename"), "blockdev")
            pairs.finish()
            self.drives[name] = Disk(path=self.nodes[name], format="raw", readonly=readonly)
            return
        if driver not in FORMATS:
            raise refuse(
                f"-blockdev driver={driver}", f"it has file, host_device, {', '.join(f for f in FORMATS if f)}"
            )
        below = pairs.get("file")
        if below:
            if below not in self.nodes:
                raise BadInput(f"qemu -blockdev {name}: no -blockdev before it has node-name={below}")
            path = self.nodes[below]
        else:
            pairs.choice("file.driver", ("file", "host_device"), "file")
            path = _path(pairs.need("file.filename"), "blockdev")
            pairs.ignore("file.node-name", "file.aio", "file.locking", "file.cache.direct", "file.cache.no-flush")
        pairs.finish()
        self.nodes[name] = path
        self.drives[name] = Disk(path=path, format=driver, readonly=readonly)

    def device(self, argument: str) -> None:
        pairs = _pairs(_json(argument, "device")) if argument.startswith("{") else Pairs("device", argument, "driver")
        pairs.option = "device"
        driver = pairs.need("driver")
        self.waiting.append((driver, pairs))

    def _attach(self, driver: str, pairs: Pairs) -> None:
        kind = driver
        for suffix in SUFFIXES:
            kind = kind.removesuffix(suffix)
        pairs.ignore(
            "id", "bus", "addr", "multifunction", "disable-legacy", "disable-modern", "iommu_platform", "romfile"
        )
        pairs.ignore("packed", "ats", "vectors", "num-queues", "queue-size", "iothread", "event_idx", "indirect_desc")
        if kind in ("virtio-blk", "scsi-hd", "scsi-cd", "ide-hd", "ide-cd"):
            self._disk_device(kind, pairs)
        elif kind == "virtio-net":
            self._network_device(pairs)
        elif kind in ("virtio-scsi", "virtio-serial", "pcie-root-port", "pci-bridge", "ich9-ahci", "ahci"):
            pairs.ignore("chassis", "port", "slot", "max_ports", "hotplug")  # controllers: ours come with the device
        elif kind == "virtio-rng":
            rng = pairs.get("rng")
            if rng and rng not in self.rngs:
                raise BadInput(f"qemu -device {driver}: no -object has id={rng}")
            pairs.ignore("max-bytes", "period")
            self.rng = True
        elif kind == "virtio-balloon":
            pairs.ignore("deflate-on-oom", "free-page-reporting", "free-page-hint")
            self.balloon = True
        elif kind in ("virtio-vsock", "vhost-vsock"):
            self.vsock = pairs.number("guest-cid", 3, (1 << 32) - 2)
            if self.vsock is None:
                raise BadInput(f"qemu -device {driver}: needs guest-cid=")
        elif kind in ("virtio-gpu", "virtio-vga"):
            self.graphics = True
        elif kind in ("virtio-keyboard", "virtio-mouse", "virtio-tablet"):
            self.input.append(kind.removeprefix("virtio-"))
        elif kind == "isa-debug-exit":
            if pairs.get("iobase", "0xf4") != "0xf4" or pairs.get("iosize", "0x04") not in ("0x04", "4", "0x4"):
                raise refuse("-device isa-debug-exit elsewhere", "it is at iobase=0xf4, iosize=0x04")
            self.debug_exit = True
        else:
            raise refuse(f"-device {driver}", _nearest_device(kind))
        pairs.finish()

    def _disk_device(self, kind: str, pairs: Pairs) -> None:
        id = pairs.need("drive")
        disk = self.drives.get(id)
        if disk is None:
            raise BadInput(f"qemu -device {kind}: no -drive if=none and no -blockdev is named {id}")
        if id in self.used:
            raise BadInput(f"qemu -device {kind}: the drive {id} has a device already")
        self.used.add(id)
        bus: Literal["virtio", "ide", "scsi"] = "virtio"
        if kind.startswith("scsi"):
            bus = "scsi"
        elif kind.startswith("ide"):
            bus = "ide"
        cdrom = kind.endswith("-cd") or disk.media == "cdrom"
        disk = msgspec.structs.replace(
            disk,
            bus=bus,
            media="cdrom" if cdrom else "disk",
            readonly=disk.readonly or cdrom,
            serial=pairs.get("serial", disk.serial),
            boot_index=pairs.number("bootindex", 0, 65535),
        )
        if pairs.get("logical_block_size", "512") != "512":
            raise refuse(f"-device {kind},logical_block_size=", "a disk's blocks have 512 bytes")
        pairs.ignore("write-cache", "share-rw", "unit", "scsi-id", "lun", "channel", "discard")
        pairs.ignore("physical_block_size", "config-wce", "rotation_rate", "device_id")
        self.disks.append((None, disk))

    def _network_device(self, pairs: Pairs) -> None:
        id = pairs.need("netdev")
        network = self.back_ends.get(id)
        if network is None:
            raise BadInput(f"qemu -device virtio-net: no -netdev has id={id}")
        if id in self.used:
            raise BadInput(f"qemu -device virtio-net: the network {id} has a card already")
        self.used.add(id)
        self.networks.append(msgspec.structs.replace(network, mac=_mac(pairs.get("mac"), "device")))
        pairs.ignore("mq", "bootindex", "mrg_rxbuf", "host_mtu", "csum", "rx_queue_size", "tx_queue_size", "gso")

    def netdev(self, argument: str) -> None:
        pairs = Pairs("netdev", argument, "type")
        id = pairs.need("id")
        self.back_ends[id] = _network(pairs.need("type"), pairs)
        pairs.finish()

    def nic(self, argument: str) -> None:
        pairs = Pairs("nic", argument, "type")
        kind = pairs.need("type")
        if kind == "none":
            self.no_network = True
            pairs.finish()
            return
        model = pairs.get("model", "virtio")
        if not model.startswith("virtio"):
            raise refuse(f"-nic model={model}", "its network card is virtio: model=virtio-net-pci")
        pairs.ignore("id")
        mac = _mac(pairs.get("mac"), "nic")
        self.networks.append(msgspec.structs.replace(_network(kind, pairs), mac=mac))
        pairs.finish()

    def result(self, snapshot: bool) -> tuple[tuple[Disk, ...], tuple[Network, ...], tuple[str, ...]]:
        """(disks in their order, networks, flash images)."""
        for driver, pairs in self.waiting:
            self._attach(driver, pairs)
        self.waiting = []
        for node in self.flash_nodes:
            if node not in self.drives:
                raise BadInput(f"qemu -machine pflash: no -blockdev is named {node}")
            self.flash(self.drives[node].path, self.drives[node].readonly)
        taken = [place for place, disk in self.disks if place is not None and disk.bus == "ide"]
        for place in taken:
            if taken.count(place) > 1:
                raise BadInput(f"qemu: two drives are at index={place} of the IDE bus")
        free = iter(place for place in range(10**6) if place not in taken)
        placed = [(next(free) if place is None else place, disk) for place, disk in self.disks]
        disks = [disk for _, disk in sorted(placed, key=lambda item: item[0])]
        if snapshot:
            disks = [msgspec.structs.replace(disk, snapshot=not disk.readonly) for disk in disks]
        return tuple(disks), tuple(self.networks), tuple(path for _, path in sorted(self.flashes))


def _network(kind: str, pairs: Pairs) -> Network:
    if kind == "user":
        forwards = tuple(_forward(text) for text in pairs.all("hostfwd"))
        pairs.ignore("net", "host", "hostname", "dns", "dhcpstart", "dnssearch", "ipv4", "ipv6", "domainname")
        return Network(kind="user", forwards=forwards, restrict=pairs.flag("restrict"))
    if kind == "tap":
        for key in ("script", "downscript"):
            value = pairs.get(key, "no")
            if value not in ("no", ""):
                raise refuse(f"-netdev tap,{key}={value}", f"set the device up beforehand, and say {key}=no")
        pairs.ignore("vhost", "queues", "vnet_hdr", "sndbuf")
        return Network(kind="tap", interface=pairs.get("ifname"))
    if kind == "bridge":
        pairs.ignore("helper")
        return Network(kind="bridge", interface=pairs.get("br", "br0"))
    if kind == "stream":
        if pairs.get("addr.type", "unix") != "unix" or pairs.flag("server"):
            raise refuse("-netdev stream", "it connects to a UNIX socket: server=off,addr.type=unix,addr.path=PATH")
        pairs.ignore("reconnect", "reconnect-ms")
        return Network(kind="stream", interface=pairs.need("addr.path"))
    raise refuse(f"-netdev {kind}", "it has user, tap, bridge and stream")


def _forward(text: str) -> Forward:
    """[tcp|udp]:[address]:port-[address]:port"""
    found = re.fullmatch(r"(tcp|udp)?:([^:-]*):(\d{1,5})-([^:]*):(\d{1,5})", text, re.ASCII)
    if not found or not (0 < int(found[3]) < 65536 and 0 < int(found[5]) < 65536):
        raise BadInput(f"qemu hostfwd={text}: write it like tcp::2222-:22")
    protocol: Literal["tcp", "udp"] = "udp" if found[1] == "udp" else "tcp"
    return Forward(
        protocol=protocol,
        host_address=found[2],
        host_port=int(found[3]),
        guest_address=found[4],
        guest_port=int(found[5]),
    )


def _nearest_device(kind: str) -> str:
    for words, nearest in (
        (("e1000", "rtl8139", "ne2k", "pcnet", "vmxnet3", "usb-net"), "its network card is virtio-net-pci"),
        (("nvme", "usb-storage", "lsi", "megasas", "mptsas", "pvscsi"), "its disks are virtio-blk-pci or scsi-hd"),
        (
            ("vga", "cirrus-vga", "qxl", "bochs", "vmware-svga", "secondary"),
            "there is no graphics card; the serial console is by -nographic",
        ),
        (("usb-tablet", "usb-mouse", "usb-kbd"), "there is no screen to point at; the serial console is by -nographic"),
        (("tpm",), "there is no TPM"),
        (("usb", "qemu-xhci", "nec-usb", "piix"), "there is no USB"),
        (("vfio",), "devices of the host can't be passed through"),
        (("intel-hda", "hda", "ac97", "es1370"), "there is no sound"),
        (("vhost-user",), "use the device without vhost-user"),
    ):
        if any(kind.lower().startswith(word) for word in words):
            return nearest
    return "it has virtio-blk, -net, -scsi, -serial, -rng, -balloon and -vsock"


def _path(text: str, option: str) -> str:
    """A file name: a protocol before it (nbd:, http:, ...) is refused."""
    path = text.removeprefix("file:")
    if not path:
        raise BadInput(f"qemu -{option}: names no file")
    if found := re.match(r"(nbd|https?|ftps?|ssh|rbd|iscsi|nfs|gluster\w*|fat|json|blkdebug|sheepdog)[:+]", path):
        raise refuse(f"-{option} {found[1]}:", "serve it as a file, or by qemu-storage-daemon")
    return path


def _mac(text: str, option: str) -> str:
    if text and not MAC.fullmatch(text):
        raise BadInput(f"qemu -{option}: mac={text} is no MAC address; write it like 52:54:00:12:34:56")
    return text.lower()


def _json(text: str, option: str) -> dict[str, Any]:
    try:
        values = json.loads(text)
    except (ValueError, RecursionError) as error:
        raise BadInput(f"qemu -{option}: {error.args[0] if error.args else error}") from None
    if not isinstance(values, dict):
        raise BadInput(f"qemu -{option}: the JSON is no object")
    return values


def _pairs(values: dict[str, Any]) -> Pairs:
    """A JSON object as the same pairs: {"file": {"driver": ...}} is file.driver=..."""
    pairs = Pairs("blockdev", "x=")
    pairs.values = {}

    def add(prefix: str, part: dict[str, Any], depth: int) -> None:
        for key, value in part.items():
            if isinstance(value, dict) and depth < 8:
                add(f"{prefix}{key}.", value, depth + 1)
            elif isinstance(value, bool):
                pairs.values[prefix + key] = ["on" if value else "off"]
            else:
                pairs.values[prefix + key] = [str(value)]

    add("", values, 0)
    return pairs
