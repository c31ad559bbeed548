"""QEMU's -drive, -blockdev, -device, -netdev and -nic: front ends and what stands behind them, brought together."""

from __future__ import annotations

import json
import re
from typing import Any, Literal

import msgspec

from kvmkit.errors import BadInput
from kvmkit.machine.limits import Limits
from kvmkit.machine.pmem import Pmem
from kvmkit.machine.spec import MAX_DISK_QUEUES, ConsolePort
from kvmkit.machine.vhost_user import VhostUser
from kvmkit.manager.description import Disk, Firmware, Network, Serial
from kvmkit.manager.qemu_chardevs import CONSOLE, Chardevs
from kvmkit.manager.qemu_limits import limits
from kvmkit.manager.qemu_networks import mac_of, network
from kvmkit.manager.qemu_options import Pairs, refuse

FORMATS = ("", "raw", "qcow2", "vmdk", "vdi", "vhdx", "vpc", "luks")
CACHES = ("", "none", "writeback", "writethrough", "directsync", "unsafe")
LETTERS = {"hda": 0, "hdb": 1, "hdc": 2, "hdd": 3, "cdrom": 2}

# Device names end in how they are attached, which is ours to choose.
SUFFIXES = ("-pci-non-transitional", "-pci-transitional", "-pci", "-device", "-ccw")


class Devices:
    def __init__(self) -> None:
        self.disks: list[tuple[int | None, Disk]] = []  # (place on the IDE bus, disk)
        self.drives: dict[str, Disk] = {}  # if=none and -blockdev, by id
        self.nodes: dict[str, str] = {}  # -blockdev protocol nodes: name -> path
        self.node_flags: dict[str, bool] = {}
        self.flashes: dict[int, Disk] = {}
        self.flash_nodes: dict[int, str] = {}
        self.networks: list[Network] = []
        self.back_ends: dict[str, Network] = {}
        self.used: set[str] = set()
        self.waiting: list[tuple[str, Pairs]] = []
        self.no_network = False
        self.rngs: set[str] = set()
        self.rng = self.balloon = self.graphics = self.debug_exit = False
        self.input: list[str] = []
        self.vsock: int | None = None
        self.chardevs = Chardevs()
        self.serials: list[Serial] = []
        self.ports: list[ConsolePort] = []
        self.vhost_user: list[VhostUser] = []
        self.cards: dict[str, str] = {}  # -netdev vhost-user: id -> its chardev
        self.throttles: dict[str, dict[str, float]] = {}  # -object throttle-group
        self.rng_limits = Limits()
        self.files: dict[str, Pmem] = {}  # -object memory-backend-file
        self.pmem: list[Pmem] = []

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
        index = pairs.number("index", 0, 255)
        if interface == "pflash":
            image = Disk(
                path=path, format=pairs.get("format"), readonly=readonly, snapshot=pairs.flag("snapshot")
            )  # fmt: skip
            pairs.ignore("id", "cache", "aio", "file.locking")
            pairs.finish()
            self.flash(image, index if unit is None else unit)
            return
        id = pairs.get("id")
        rates = Limits(**limits("drive", pairs))
        disk = Disk(
            path=path,
            format=pairs.choice("format", FORMATS),
            bus="virtio" if interface in ("virtio", "none") else "scsi" if interface == "scsi" else "ide",
            media="cdrom" if media == "cdrom" else "disk",
            readonly=readonly,
            snapshot=pairs.flag("snapshot"),
            cache=pairs.choice("cache", CACHES),
            serial=pairs.get("serial"),
            bps=rates.bps,
            iops=rates.iops,
            bps_burst=rates.bps_burst,
            iops_burst=rates.iops_burst,
        )
        pairs.ignore("aio", "discard", "detect-zeroes", "werror", "rerror", "copy-on-read", "bus")
        pairs.finish()
        if interface == "none":
            if not id:
                raise BadInput(f"qemu -drive {argument}: if=none needs an id= for the -device that uses it")
            self.drives[id] = disk
        else:
            self.disks.append((index, disk))

    def flash(self, image: Disk, unit: int | None = None) -> None:
        """One of two chips: the code, and the variables below it."""
        unit = next(free for free in range(3) if free not in self.flashes) if unit is None else unit
        if unit in self.flashes:
            raise BadInput(f"qemu pflash: {self.flashes[unit].path} and {image.path} are both unit {unit}")
        if unit > 1:
            raise BadInput(f"qemu pflash: {image.path}: there are two, unit 0 (code) and unit 1 (variables)")
        if image.format not in ("", "raw"):
            raise refuse(
                f"pflash of format {image.format}", f"qemu-img convert -O raw {image.path} {image.path}.raw"
            )  # fmt: skip
        self.flashes[unit] = image

    def flash_node(self, unit: int, node: str) -> None:
        self.flash_nodes[unit] = node

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
        if driver == "throttle":
            group, below = pairs.need("throttle-group"), pairs.need("file")
            pairs.finish()
            if group not in self.throttles:
                raise BadInput(
                    f"qemu -blockdev {name}: no -object before it is the throttle-group {group}, or it is used"
                )
            if below not in self.drives:
                raise BadInput(f"qemu -blockdev {name}: no -blockdev before it has node-name={below}")
            self.nodes[name] = self.nodes[below]
            self.drives[name] = msgspec.structs.replace(self.drives[below], **self.throttles.pop(group))
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
        pairs.ignore("packed", "ats", "vectors", "queue-size", "iothread", "event_idx", "indirect_desc")
        queues = pairs.number("num-queues", 1, 65535) or 0
        if kind in ("virtio-blk", "scsi-hd", "scsi-cd", "ide-hd", "ide-cd"):
            self._disk_device(kind, pairs, min(queues, MAX_DISK_QUEUES) if kind == "virtio-blk" else 0)
        elif kind == "virtio-net":
            self._network_device(pairs)
        elif kind in ("virtio-scsi", "virtio-serial", "pcie-root-port", "pci-bridge", "ich9-ahci", "ahci"):
            pairs.ignore("chassis", "port", "slot", "max_ports", "hotplug")  # controllers: ours come with the device
        elif kind == "virtio-rng":
            rng = pairs.get("rng")
            if rng and rng not in self.rngs:
                raise BadInput(f"qemu -device {driver}: no -object has id={rng}")
            self._rng_limits(pairs)
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
            pairs.ignore("serial", "display", "head")
        elif kind in ("virtserialport", "virtconsole", "isa-serial"):
            self._port(kind, pairs)
        elif kind in ("vhost-user-fs", "vhost-user-blk", "vhost-user-scsi"):
            self._vhost_user(kind.removeprefix("vhost-user-"), queues, pairs)
        elif kind in ("nvdimm", "virtio-pmem"):
            self._pmem(kind, pairs)
        elif kind == "isa-debug-exit":
            if pairs.get("iobase", "0xf4") != "0xf4" or pairs.get("iosize", "0x04") not in ("0x04", "4", "0x4"):
                raise refuse("-device isa-debug-exit elsewhere", "it is at iobase=0xf4, iosize=0x04")
            self.debug_exit = True
        else:
            raise refuse(f"-device {driver}", _nearest_device(kind))
        pairs.finish()

    def _rng_limits(self, pairs: Pairs) -> None:
        most, period = pairs.number("max-bytes", 1, 1 << 62), pairs.number("period", 1, 1 << 31)
        if most:  # bytes in each period, of milliseconds
            self.rng_limits = Limits(bps=most * 1000 / (period or 65536), bps_burst=float(most))

    def _port(self, kind: str, pairs: Pairs) -> None:
        """A port of virtio-serial, or a serial port."""
        option = f"-device {kind}"
        id = pairs.need("chardev")
        if kind == "isa-serial":
            pairs.ignore("index", "iobase", "irq")
            self.serials.append(self.chardevs.serial(id, option))
            return
        pairs.ignore("nr")
        name = CONSOLE if kind == "virtconsole" else pairs.need("name")
        pairs.ignore("name")
        if any(port.name == name for port in self.ports):
            raise refuse(f"{option} a second time with the name {name}", "each port has a name of its own")
        self.ports.append(self.chardevs.port(name, id, option))

    def _vhost_user(self, kind: str, queues: int, pairs: Pairs) -> None:
        socket = self.chardevs.backend(pairs.need("chardev"), f"-device vhost-user-{kind}")
        given: dict[str, Any] = {"tag": pairs.need("tag")} if kind == "fs" else {"queues": queues}
        pairs.ignore("bootindex", "cache-size", "num-request-queues", "config-wce", "share-rw")
        self.vhost_user.append(msgspec.convert({"kind": kind, "socket": socket, **given}, VhostUser))

    def _pmem(self, kind: str, pairs: Pairs) -> None:
        id = pairs.need("memdev")
        if id not in self.files:
            raise BadInput(f"qemu -device {kind}: no -object memory-backend-file has id={id}")
        if pairs.flag("unarmed"):
            self.files[id] = msgspec.structs.replace(self.files[id], readonly=True)
        pairs.ignore("uuid", "node")
        self.pmem.append(self.files.pop(id))

    def _disk_device(self, kind: str, pairs: Pairs, queues: int) -> None:
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
            queues=queues,
        )
        if pairs.get("logical_block_size", "512") != "512":
            raise refuse(f"-device {kind},logical_block_size=", "a disk's blocks have 512 bytes")
        pairs.ignore("write-cache", "share-rw", "unit", "scsi-id", "lun", "channel", "discard")
        pairs.ignore("physical_block_size", "config-wce", "rotation_rate", "device_id")
        self.disks.append((None, disk))

    def _network_device(self, pairs: Pairs) -> None:
        id = pairs.need("netdev")
        pairs.ignore("mq", "bootindex", "mrg_rxbuf", "host_mtu", "csum", "rx_queue_size", "tx_queue_size", "gso")
        mac = mac_of(pairs.get("mac"), "device")
        if id in self.cards:
            socket = self.chardevs.backend(self.cards.pop(id), "-netdev vhost-user")
            self.vhost_user.append(VhostUser(kind="net", socket=socket, mac=mac))
            return
        found = self.back_ends.get(id)
        if found is None:
            raise BadInput(f"qemu -device virtio-net: no -netdev has id={id}")
        if id in self.used:
            raise BadInput(f"qemu -device virtio-net: the network {id} has a card already")
        self.used.add(id)
        self.networks.append(msgspec.structs.replace(found, mac=mac))

    def netdev(self, argument: str) -> None:
        pairs = Pairs("netdev", argument, "type")
        id = pairs.need("id")
        kind = pairs.need("type")
        if kind == "vhost-user":
            self.cards[id] = pairs.need("chardev")
            pairs.ignore("vhostforce", "queues")
        else:
            self.back_ends[id] = network(kind, pairs)
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
        mac = mac_of(pairs.get("mac"), "nic")
        self.networks.append(msgspec.structs.replace(network(kind, pairs), mac=mac))
        pairs.finish()

    def result(self, snapshot: bool) -> tuple[tuple[Disk, ...], tuple[Network, ...]]:
        """(disks in their order, networks)."""
        for driver, pairs in self.waiting:
            self._attach(driver, pairs)
        self.waiting = []
        taken = [place for place, disk in self.disks if place is not None and disk.bus == "ide"]
        for place in taken:
            if taken.count(place) > 1:
                raise BadInput(f"qemu: two drives are at index={place} of the IDE bus")
        free = iter(place for place in range(10**6) if place not in taken)
        placed = [(next(free) if place is None else place, disk) for place, disk in self.disks]
        disks = [disk for _, disk in sorted(placed, key=lambda item: item[0])]
        if snapshot:
            disks = [msgspec.structs.replace(disk, snapshot=not disk.readonly) for disk in disks]
        return tuple(disks), tuple(self.networks)

    def firmware(self, snapshot: bool) -> Firmware:
        """What is in flash. What the guest writes into variables that are not to be written goes with the VM."""
        for unit, node in self.flash_nodes.items():
            if node not in self.drives:
                raise BadInput(f"qemu -machine pflash{unit}: no -blockdev is named {node}")
            self.flash(self.drives[node], unit)
        code, variables = self.flashes.get(0), self.flashes.get(1)
        if variables is None:
            return Firmware(code="" if code is None else code.path)
        if code is None:
            raise BadInput(f"qemu pflash: {variables.path} is unit 1, and no unit 0 has the code")
        if variables.readonly or variables.snapshot or snapshot:
            return Firmware(code=code.path, template=variables.path)
        return Firmware(code=code.path, variables=variables.path)


def _nearest_device(kind: str) -> str:
    for words, nearest in (
        (("e1000", "rtl8139", "ne2k", "pcnet", "vmxnet3", "usb-net"), "its network card is virtio-net-pci"),
        (("nvme", "usb-storage", "lsi", "megasas", "mptsas", "pvscsi"), "its disks are virtio-blk-pci or scsi-hd"),
        (
            ("vga", "cirrus-vga", "qxl", "bochs", "vmware-svga", "secondary"),
            "there is no graphics card; the serial console is by -nographic",
        ),
        (("usb-tablet", "usb-mouse", "usb-kbd"), "it has virtio-tablet-pci and virtio-keyboard-pci"),
        (("tpm",), "there is no TPM"),
        (("usb", "qemu-xhci", "nec-usb", "piix"), "there is no USB"),
        (("vfio",), "devices of the host can't be passed through"),
        (("intel-hda", "hda", "ac97", "es1370"), "there is no sound"),
        (("vhost-user",), "it has vhost-user-fs, -blk and -scsi, and -netdev vhost-user"),
        (("virtio-9p", "virtio-mem", "virtio-crypto", "virtio-iommu", "virtio-snd"), "nothing near it"),
        (("usb-host", "usb-redir"), "devices of the host can't be passed through"),
        (("pvpanic", "i6300esb", "ib700"), "a guest's panic ends the VM by panic=-1 and -no-reboot"),
    ):
        if any(kind.lower().startswith(word) for word in words):
            return nearest
    return "it has virtio-blk, -net, -scsi, -serial, -rng, -balloon, -keyboard, -tablet and -pmem, and vhost-vsock"


def _path(text: str, option: str) -> str:
    """A file name: a protocol before it (nbd:, http:, ...) is refused."""
    path = text.removeprefix("file:")
    if not path:
        raise BadInput(f"qemu -{option}: names no file")
    if found := re.match(r"(nbd|https?|ftps?|ssh|rbd|iscsi|nfs|gluster\w*|fat|json|blkdebug|sheepdog)[:+]", path):
        raise refuse(f"-{option} {found[1]}:", "serve it as a file, or by qemu-storage-daemon")
    return path


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
