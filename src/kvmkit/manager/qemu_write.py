"""Description -> QEMU's command line, as `kvmkit qemu` and QEMU read it."""

from __future__ import annotations

from kvmkit.machine.limits import Limits
from kvmkit.manager.description import Description, Disk, Firmware, Forward, Network, Serial
from kvmkit.manager.fit_firmware import flash_images
from kvmkit.manager.qemu_chardevs import CONSOLE
from kvmkit.manager.qemu_limits import told
from kvmkit.net.options import BRIDGE_PREFIX

GIB = 1 << 30


def write_qemu(description: Description) -> list[str]:
    """The words after `qemu-system-x86_64`.

    BadInput when the size of a file of persistent memory is not to be had, HostError when UEFI is not.
    """
    words = ["-machine", _machine(description)]
    if description.accel != "auto":
        words += ["-accel", description.accel]
    else:
        words += ["-accel", "kvm", "-accel", "tcg"]
    for option, text in (
        ("name", f"guest={_comma(description.name)}" if description.name else ""),
        ("uuid", description.uuid),
        ("cpu", description.cpu + (",enforce" if description.cpu_enforce else "")),
        ("smp", str(description.cpus) if description.cpus != 1 else ""),
        ("kernel", description.kernel),
        ("initrd", ",".join(_comma(path) for path in description.initrd)),
        ("append", description.append),
        ("bios", description.firmware.bios),
        ("boot", f"order={description.boot_order}" if description.boot_order else ""),
    ):
        if text:
            words += [f"-{option}", text]
    words += _memory(description) + _pmem(description)
    words += _flash(description.firmware)
    if any(disk.bus == "scsi" for disk in description.disks):
        words += ["-device", "virtio-scsi-pci,id=scsi0"]  # before what hangs on it
    for index, disk in enumerate(description.disks):
        words += _disk(index, disk)
    for index, network in enumerate(description.networks):
        words += _network(index, network)
    if not description.networks and not description.defaults:
        words += ["-nic", "none"]
    return words + _rest(description)


def _machine(description: Description) -> str:
    text: str = description.board
    if text == "microvm":
        text += ",pcie=on"  # its devices hang on PCI here, as on the other boards
    if description.memory.shared or description.memory.hugepages:
        text += ",memory-backend=ram"
    return text


def _flash(firmware: Firmware) -> list[str]:
    """UEFI by its own word is the host's OVMF. Variables made of a template go with the VM."""
    code, variables = flash_images(firmware)
    words = ["-global", "driver=cfi.pflash01,property=secure,value=on"] if firmware.secure and firmware.code else []
    kept = "" if firmware.variables else ",snapshot=on"
    for unit, option, image in ((0, ",readonly=on", code), (1, kept, variables)):
        words += ["-drive", f"if=pflash,format=raw,unit={unit}{option},file={_comma(image)}"] if image else []
    return words


def _pmem(description: Description) -> list[str]:
    words = []
    for number, one in enumerate(description.pmem):
        share = "off,readonly=on" if one.readonly else "on"
        backend = f"memory-backend-file,id=pmem{number},mem-path={_comma(one.path)},size={one.check()},share={share}"
        words += ["-object", backend, "-device", f"virtio-pmem-pci,memdev=pmem{number}"]
    return words


def _comma(text: str) -> str:
    return text.replace(",", ",,")


def _memory(description: Description) -> list[str]:
    memory = description.memory
    hotplug = sum(one.check() for one in description.pmem)
    words = ["-m", f"{memory.size >> 10}K" + (f",maxmem={(memory.size + hotplug + GIB) >> 10}K" if hotplug else "")]
    if memory.shared or memory.hugepages:
        kind = "memory-backend-file" if memory.path else "memory-backend-memfd"
        options = [f"mem-path={_comma(memory.path)}"] if memory.path else []
        for name, on in (("hugetlb", memory.hugepages), ("share", memory.shared), ("prealloc", memory.preallocate)):
            options += [f"{name}=on"] if on else []
        options += [f"hugetlbsize={memory.page}"] if memory.page and not memory.path else []
        return [*words, "-object", ",".join([kind, "id=ram", f"size={memory.size >> 10}K", *options])]
    if memory.path:
        words += ["-mem-path", memory.path]
    if memory.preallocate:
        words.append("-mem-prealloc")
    return words


def _disk(index: int, disk: Disk) -> list[str]:
    name = f"disk{index}"
    text = f"if=none,id={name},file={_comma(disk.path)}"
    for key, value in (("format", disk.format), ("cache", disk.cache)):
        text += f",{key}={value}" if value else ""
    for key, on in (("readonly", disk.readonly), ("snapshot", disk.snapshot)):
        text += f",{key}=on" if on else ""
    if disk.media == "cdrom":
        text += ",media=cdrom"
        device = "scsi-cd" if disk.bus == "scsi" else "ide-cd"
    else:
        device = {"virtio": "virtio-blk-pci", "scsi": "scsi-hd", "ide": "ide-hd"}[disk.bus]
    device += f",drive={name}"
    device += f",serial={_comma(disk.serial)}" if disk.serial else ""
    device += f",bootindex={disk.boot_index}" if disk.boot_index is not None else ""
    device += f",num-queues={disk.queues}" if disk.queues else ""
    text += "".join(f",throttling.{key}={value}" for key, value in told(disk))
    return ["-drive", text, "-device", device]


def _network(index: int, network: Network) -> list[str]:
    kind = "bridge" if network.kind == "network" else network.kind
    text = f"{kind},id=net{index}"
    if network.kind == "tap":
        text += f",ifname={_comma(network.interface)}" if network.interface else ""
        text += ",script=no,downscript=no"
    elif network.kind == "bridge":
        text += f",br={_comma(network.interface)}" if network.interface else ""
    elif network.kind == "network":
        text += f",br={BRIDGE_PREFIX}{network.interface}"
    elif network.kind == "stream":
        text += f",server=off,addr.type=unix,addr.path={_comma(network.interface)}"
    text += "".join(f",hostfwd={_forward(forward)}" for forward in network.forwards)
    text += ",restrict=on" if network.restrict else ""
    device = f"virtio-net-pci,netdev=net{index}{f',mac={network.mac}' if network.mac else ''}"
    return ["-netdev", text, "-device", device]


def _forward(forward: Forward) -> str:
    host = f"{forward.host_address}:{forward.host_port}"
    return f"{forward.protocol}:{host}-{forward.guest_address}:{forward.guest_port}"


def _rng(limits: Limits) -> str:
    if not limits.bps:
        return "virtio-rng-pci"
    return "virtio-rng-pci,max-bytes={},period={}".format(*rng_rate(limits))


def rng_rate(limits: Limits) -> tuple[int, int]:
    """(bytes, the milliseconds they are for): what a rate and its burst, by itself a tenth of a second's, come to."""
    most = max(1, round(limits.bps_burst or limits.bps / 10))
    return most, max(1, round(most * 1000 / limits.bps))


def _ports(description: Description) -> list[str]:
    words = ["-device", "virtio-serial-pci"] if description.ports else []
    for number, port in enumerate(description.ports):
        path = _comma(port.path or f"{port.name}.port")
        device = "virtconsole" if port.name == CONSOLE else "virtserialport"
        name = "" if port.name == CONSOLE else f",name={_comma(port.name)}"
        words += ["-chardev", f"socket,id=port{number},path={path},server=on,wait=off"]
        words += ["-device", f"{device},chardev=port{number}{name}"]
    return words


def _served(description: Description) -> list[str]:
    """Devices of other processes: QEMU starts no virtiofsd by itself, so its socket gets a name here."""
    words = []
    for number, device in enumerate(description.vhost_user):
        words += ["-chardev", f"socket,id=served{number},path={_comma(device.socket)}"]
        if device.kind == "net":
            words += ["-netdev", f"vhost-user,id=served{number}-net,chardev=served{number}"]
            mac = f",mac={device.mac}" if device.mac else ""
            words += ["-device", f"virtio-net-pci,netdev=served{number}-net{mac}"]
            continue
        tag = f",tag={_comma(device.tag)}" if device.kind == "fs" else ""
        queues = f",num-queues={device.queues}" if device.queues else ""
        words += ["-device", f"vhost-user-{device.kind}-pci,chardev=served{number}{tag}{queues}"]
    for number, volume in enumerate(description.volumes):
        words += ["-chardev", f"socket,id=share{number},path={_comma(virtiofsd_socket(number))}"]
        words += ["-device", f"vhost-user-fs-pci,chardev=share{number},tag={_comma(volume.tag)}"]
    return words


def virtiofsd_socket(number: int) -> str:
    """Where the virtiofsd of a volume is expected: the user starts it."""
    return f"virtiofsd{number}.sock"


def _serial(serial: Serial) -> str:
    if serial.kind == "unix":
        return f"unix:{serial.path},server=on,wait=off"
    return f"file:{serial.path}" if serial.kind == "file" else serial.kind


def _rest(description: Description) -> list[str]:
    words: list[str] = []
    for serial in description.serials:
        words += ["-serial", _serial(serial)]
    if not description.serials:
        words += ["-serial", "none"]
    if description.display == "none":
        words += ["-display", "none"]
    elif description.display == "vnc" and description.vnc:
        host, _, port = description.vnc.rpartition(":")
        unix = description.vnc.startswith("unix:")
        words += ["-vnc", description.vnc if unix else f"{host}:{int(port) - 5900}"]
    devices = ["virtio-vga"] if description.graphics else []
    devices += [f"virtio-{kind}-pci" for kind in description.input]
    devices += [_rng(description.rng_limits)] if description.rng else []
    devices += ["virtio-balloon-pci"] if description.balloon else []
    if description.vsock is not None:
        devices.append(f"vhost-vsock-pci,guest-cid={description.vsock}")
    if description.debug_exit:
        devices.append("isa-debug-exit,iobase=0xf4,iosize=0x04")
    for device in devices:
        words += ["-device", device]
    words += _ports(description) + _served(description)
    for flag, on in (("no-reboot", not description.reboot), ("daemonize", description.daemonize)):
        words += [f"-{flag}"] if on else []
    if description.pidfile:
        words += ["-pidfile", description.pidfile]
    return words
