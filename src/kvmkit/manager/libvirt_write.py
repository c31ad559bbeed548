"""Description -> libvirt's domain XML, which virt-xml-validate accepts; and what of it XML can't hold."""

from __future__ import annotations

from os.path import abspath
from uuid import UUID
from xml.etree import ElementTree
from xml.etree.ElementTree import Element, SubElement

from kvmkit.errors import BadInput
from kvmkit.manager.description import Description, Disk, Network
from kvmkit.manager.libvirt_firmware import write_firmware
from kvmkit.manager.qemu_chardevs import CONSOLE
from kvmkit.manager.qemu_limits import told
from kvmkit.manager.qemu_write import rng_rate

BUS_LETTERS = {"virtio": "vd", "ide": "hd", "scsi": "sd"}


def write_domain(description: Description) -> tuple[str, list[str]]:
    """(the XML, what had to be left out of it, each in words). libvirt takes absolute paths only: they are made so."""
    _check_text(description)
    left: list[str] = []
    root = Element("domain", type="kvm" if description.accel != "tcg" else "qemu")
    SubElement(root, "name").text = description.name or "kvmkit"
    if description.uuid:
        try:
            SubElement(root, "uuid").text = str(UUID(description.uuid))
        except ValueError:
            raise BadInput(f"uuid {description.uuid}: is no UUID") from None
    SubElement(root, "memory", unit="KiB").text = str(-(-description.memory.size // 1024))
    _memory(root, description)
    SubElement(root, "vcpu").text = str(description.cpus)
    _os(root, description)
    SubElement(SubElement(root, "features"), "acpi")
    _cpu(root, description)
    SubElement(root, "on_reboot").text = "restart" if description.reboot else "destroy"
    devices = SubElement(root, "devices")
    counts: dict[str, int] = {}
    for disk in description.disks:
        _disk(devices, disk, description, counts)
    for network in description.networks:
        left += _network(devices, network)
    left += _served(devices, description, counts)
    left += _pmem(root, devices, description)
    _rest(devices, description)
    for there, text in (
        (description.debug_exit, "isa-debug-exit"),
        (description.daemonize, "daemonize: libvirt runs a domain in the background in any case"),
        (bool(description.pidfile), f"pidfile {description.pidfile}"),
        (
            len(description.initrd) > 1,
            f"all initial RAM disks but {description.initrd[0] if description.initrd else ''}",
        ),
        (bool(description.memory.path), f"memory path {description.memory.path}: libvirt has its own mount"),
    ):
        if there:
            left.append(text)
    ElementTree.indent(root)
    return ElementTree.tostring(root, encoding="unicode") + "\n", left


def _check_text(description: Description) -> None:
    for text in (description.name, description.append, description.kernel, *(disk.path for disk in description.disks)):
        if any(ord(letter) < 32 or 0xD800 <= ord(letter) < 0xE000 or letter in "\ufffe\uffff" for letter in text):
            raise BadInput(f"{text!r}: holds a letter that XML can't")


def _memory(root: Element, description: Description) -> None:
    memory = description.memory
    if not (memory.hugepages or memory.path or memory.shared or memory.preallocate):
        return
    backing = SubElement(root, "memoryBacking")
    if memory.hugepages or memory.path:
        hugepages = SubElement(backing, "hugepages")
        if memory.page:
            SubElement(hugepages, "page", size=memory.page[:-1], unit={"M": "MiB", "G": "GiB"}[memory.page[-1]])
    elif memory.shared:
        SubElement(backing, "source", type="memfd")
    if memory.shared:
        SubElement(backing, "access", mode="shared")
    if memory.preallocate:
        SubElement(backing, "allocation", mode="immediate")


def _os(root: Element, description: Description) -> None:
    element = SubElement(root, "os")
    SubElement(element, "type", arch="x86_64", machine=description.board).text = "hvm"
    write_firmware(element, description.firmware)
    for tag, text in (("kernel", description.kernel), ("initrd", "".join(description.initrd[:1]))):
        if text:
            SubElement(element, tag).text = abspath(text)
    if description.append:
        SubElement(element, "cmdline").text = description.append
    if not any(disk.boot_index is not None for disk in description.disks):  # libvirt takes one way or the other
        for letter in description.boot_order:
            SubElement(element, "boot", dev={"c": "hd", "d": "cdrom"}.get(letter, "network"))


def _cpu(root: Element, description: Description) -> None:
    model, *changes = description.cpu.split(",")
    if not model:
        return
    if model in ("host", "max"):
        element = SubElement(root, "cpu", mode="host-passthrough" if model == "host" else "maximum")
        element.set("check", "partial" if model == "host" else "none")
    else:
        element = SubElement(root, "cpu", mode="custom", match="exact", check="none")
        SubElement(element, "model", fallback="forbid").text = model
    for change in changes:
        policy = "require" if change.startswith("+") else "disable"
        SubElement(element, "feature", policy=policy, name=change[1:])


def _disk(devices: Element, disk: Disk, description: Description, counts: dict[str, int]) -> None:
    block = disk.path.startswith("/dev/")
    element = SubElement(devices, "disk", type="block" if block else "file", device=disk.media)
    driver = SubElement(element, "driver", name="qemu", type=disk.format or "raw")
    if disk.cache:
        driver.set("cache", disk.cache)
    if disk.queues:
        driver.set("queues", str(disk.queues))
    SubElement(element, "source", {"dev" if block else "file": abspath(disk.path)})
    # q35 has no IDE: its disks of that kind hang on SATA.
    bus = "sata" if disk.bus == "ide" and description.board == "q35" else disk.bus
    letters = BUS_LETTERS["scsi" if bus == "sata" else disk.bus]
    number = counts.get(letters, 0)
    counts[letters] = number + 1
    SubElement(element, "target", dev=letters + _letters(number), bus=bus)
    if limits := told(disk):
        iotune = SubElement(element, "iotune")
        for key, value in limits:
            what, total, *most = key.split("-")
            name = f"{total}_{'bytes' if what == 'bps' else what}_sec"
            SubElement(iotune, "_".join([name, *most])).text = str(value)
    if disk.serial:
        SubElement(element, "serial").text = disk.serial
    if disk.boot_index is not None:
        order = sorted(d.boot_index for d in description.disks if d.boot_index is not None).index(disk.boot_index)
        SubElement(element, "boot", order=str(order + 1))
    if disk.readonly:
        SubElement(element, "readonly")
    if disk.snapshot:
        SubElement(element, "transient")


def _letters(number: int) -> str:
    """0 -> a, 25 -> z, 26 -> aa, as the kernel names disks."""
    text = ""
    number += 1
    while number:
        number, digit = divmod(number - 1, 26)
        text = chr(ord("a") + digit) + text
    return text


def _network(devices: Element, network: Network) -> list[str]:
    kind = {"user": "user", "bridge": "bridge", "tap": "ethernet", "network": "network", "stream": ""}[network.kind]
    if not kind:
        return [f"a network card on the socket {network.interface}"]
    element = SubElement(devices, "interface", type=kind)
    if network.mac:
        SubElement(element, "mac", address=network.mac)
    if network.kind == "bridge":
        SubElement(element, "source", bridge=network.interface)
    elif network.kind == "network":
        SubElement(element, "source", network=network.interface)
    elif network.kind == "tap" and network.interface:
        SubElement(element, "target", dev=network.interface, managed="no")
    SubElement(element, "model", type="virtio")
    if network.forwards:
        SubElement(element, "backend", type="passt")
    for each in network.forwards:
        ports = SubElement(element, "portForward", proto=each.protocol)
        if each.host_address not in ("", "0.0.0.0"):
            ports.set("address", each.host_address)
        SubElement(ports, "range", start=str(each.host_port), to=str(each.guest_port))
    return ["restrict=on of the user network"] if network.restrict else []


def _served(devices: Element, description: Description, counts: dict[str, int]) -> list[str]:
    """Devices of other processes, and directories for which libvirt starts virtiofsd."""
    left = []
    for device in description.vhost_user:
        if device.kind == "scsi":
            left.append(f"the vhost-user SCSI adapter at {device.socket}")
        elif device.kind == "fs":
            _filesystem(devices, device.tag, socket=abspath(device.socket))
        elif device.kind == "net":
            element = SubElement(devices, "interface", type="vhostuser")
            if device.mac:
                SubElement(element, "mac", address=device.mac)
            SubElement(element, "source", type="unix", path=abspath(device.socket), mode="client")
            SubElement(element, "model", type="virtio")
        else:
            element = SubElement(devices, "disk", type="vhostuser", device="disk")
            driver = SubElement(element, "driver", name="qemu", type="raw")
            if device.queues:
                driver.set("queues", str(device.queues))
            SubElement(element, "source", type="unix", path=abspath(device.socket))
            number = counts.get("vd", 0)
            counts["vd"] = number + 1
            SubElement(element, "target", dev="vd" + _letters(number), bus="virtio")
    for volume in description.volumes:
        element = _filesystem(devices, volume.tag, dir=abspath(volume.host))
        if volume.readonly:
            SubElement(element, "readonly")
    return left


def _filesystem(devices: Element, tag: str, **source: str) -> Element:
    element = SubElement(devices, "filesystem", type="mount", accessmode="passthrough")
    SubElement(element, "driver", type="virtiofs")
    SubElement(element, "source", source)
    SubElement(element, "target", dir=tag)
    return element


def _pmem(root: Element, devices: Element, description: Description) -> list[str]:
    left = []
    total = 0
    for one in description.pmem:
        try:
            size = one.check()
        except BadInput as error:
            left.append(f"persistent memory {one.path}: its size is not known ({error})")
            continue
        total += size
        element = SubElement(devices, "memory", model="virtio-pmem", access="private" if one.readonly else "shared")
        SubElement(SubElement(element, "source"), "path").text = abspath(one.path)
        SubElement(SubElement(element, "target"), "size", unit="KiB").text = str(size >> 10)
    if total:
        most = Element("maxMemory", slots="16", unit="KiB")
        most.text = str((description.memory.size + total) >> 10)
        root.insert([child.tag for child in root].index("memory"), most)
    return left


def _port(devices: Element, name: str, path: str) -> None:
    if name == CONSOLE:
        element = SubElement(devices, "console", type="unix" if path else "pty")
    else:
        element = SubElement(devices, "channel", type="unix")
    if path:
        SubElement(element, "source", mode="bind", path=abspath(path))
    target = SubElement(element, "target", type="virtio")
    if name != CONSOLE:
        target.set("name", name)


def _rest(devices: Element, description: Description) -> None:
    for serial in description.serials:
        kind: str = "pty" if serial.kind == "stdio" else serial.kind  # libvirt's console: virsh console
        element = SubElement(devices, "serial", type=kind)
        if serial.path:
            source = SubElement(element, "source", path=serial.path)
            if kind == "unix":
                source.set("mode", "bind")
    for port in description.ports:
        _port(devices, port.name, port.path)
    for device in description.input:
        SubElement(devices, "input", type=device, bus="virtio")
    if description.display == "vnc":
        _vnc(devices, description.vnc)
    if description.graphics:
        SubElement(SubElement(devices, "video"), "model", type="virtio")
    SubElement(devices, "memballoon", model="virtio" if description.balloon else "none")
    if description.rng:
        rng = SubElement(devices, "rng", model="virtio")
        if description.rng_limits.bps:
            most, period = rng_rate(description.rng_limits)
            SubElement(rng, "rate", bytes=str(most), period=str(period))
        SubElement(rng, "backend", model="random").text = "/dev/urandom"
    if description.vsock is not None:
        SubElement(SubElement(devices, "vsock", model="virtio"), "cid", auto="no", address=str(description.vsock))


def _vnc(devices: Element, where: str) -> None:
    if where.startswith("unix:"):
        element = SubElement(devices, "graphics", type="vnc")
        SubElement(element, "listen", type="socket", socket=where[5:])
        return
    host, _, port = where.rpartition(":")
    element = SubElement(devices, "graphics", type="vnc", port=port, autoport="no")
    SubElement(element, "listen", type="address", address=host)
