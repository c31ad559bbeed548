"""What of a Description our machine does not have: named, so that nothing is left out silently."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Literal

from kvmkit.block import formats
from kvmkit.errors import BadInput
from kvmkit.machine import spec as machine
from kvmkit.machine.network import Network
from kvmkit.machine.volume import MOST_VOLUMES
from kvmkit.manager import description as descriptions
from kvmkit.manager import networking
from kvmkit.manager.description import Description, Disk
from kvmkit.manager.fit_firmware import fitted_firmware
from kvmkit.net import passt
from kvmkit.net.options import check_network
from kvmkit.packages import how


def lacking(description: Description) -> list[str]:
    """What can't be done as described, each in words, with the option that asked for it."""
    return list(_lacking(description))


def _lacking(description: Description) -> Iterator[str]:
    yield from _start_lacks(description)
    for disk in description.disks:
        yield from _disk_lacks(disk)
    yield from _networks_lack(description)
    if len(description.serials) > 1:
        yield "more than one serial port; nearest: one -serial"
    if description.display == "vnc":
        yield f"a display by VNC at {description.vnc}; nearest: the serial console, by -nographic"
    if description.graphics:
        yield "a graphics card; nearest: the serial console, by -nographic"
    for device in description.input:
        if device not in INPUT:
            yield f"a {device}; nearest: virtio-tablet-pci"
    if description.balloon and _fixed_memory(description):
        yield "virtio-balloon with guest memory on huge pages, which can't be given back; nearest: without one"
    if len(description.volumes) > MOST_VOLUMES:
        yield f"more than {MOST_VOLUMES} shared directories"
    if description.daemonize and any(serial.kind == "stdio" for serial in description.serials):
        yield "a serial port on this terminal with -daemonize; nearest: -display none (`kvmkit console` shows it)"


INPUT = ("keyboard", "tablet")


def fitted_input(description: Description) -> tuple[Literal["keyboard", "tablet"], ...]:
    return tuple(each for each in description.input if each in INPUT)  # type: ignore[misc] # one of the two


def _fixed_memory(description: Description) -> bool:
    return description.memory.hugepages or bool(description.memory.path)


def has_balloon(description: Description) -> bool:
    return description.balloon and not _fixed_memory(description)


def _networks_lack(description: Description) -> Iterator[str]:
    restricted = {network.restrict for network in description.networks}
    if len(restricted) > 1:
        yield "restrict=on beside another network; nearest: on each of them"
    for network in description.networks:
        if not _is_network(network):
            yield f"a network called {network.interface!r}; nearest: 1 to 11 small letters, digits and -"
        for forward in network.forwards:
            if forward.guest_address not in ("", passt.ADDRESS):
                told = f"hostfwd to {forward.guest_address}"
                yield f"{told}; nearest: none, as the guest is {passt.ADDRESS}"
            if ":" in forward.host_address:
                yield f"hostfwd from {forward.host_address}; nearest: an IPv4 address"


def _start_lacks(description: Description) -> Iterator[str]:
    firmware = fitted_firmware(description)
    yield from firmware.lacks
    if description.kernel and description.firmware.bios and not firmware.firmware:
        bios = description.firmware.bios
        yield f"the firmware {bios} before -kernel; nearest: without -bios, as the kernel is started directly"
    if not description.kernel and not description.disks:
        yield "a start without a kernel or a disk; nearest: -kernel FILE, or -hda FILE with a boot loader on it"
    if not description.kernel and (description.initrd or description.append):
        yield "-initrd and -append for a kernel on a disk; nearest: its boot loader's own configuration"
    if not description.kernel and description.boot_order[:1] in ("n", "p"):
        yield f"a start from the network (-boot {description.boot_order}); nearest: -boot c (disk) or d (CD-ROM)"


def boot_order(description: Description) -> tuple[int, ...]:
    """Which disks firmware is to try first, as places in `fitted_disks`: by boot index, then by -boot's letters."""
    disks, units = _split(description)
    placed = list(enumerate([*disks, *units]))
    indexed = [(disk.boot_index, place) for place, disk in placed if disk.boot_index is not None]
    order = [place for _, place in sorted(indexed)]
    kinds = {"c": "disk", "d": "cdrom"}
    for letter in description.boot_order:
        order += [place for place, disk in placed if disk.media == kinds.get(letter) and place not in order]
    return tuple(order)


def _split(description: Description) -> tuple[list[Disk], list[Disk]]:
    """(those that are virtio disks here, those that are SCSI units)."""
    scsi = [disk.media == "cdrom" or disk.bus == "scsi" for disk in description.disks]
    parts: tuple[list[Disk], list[Disk]] = ([], [])
    for disk, is_scsi in zip(description.disks, scsi, strict=True):
        parts[is_scsi].append(disk)
    return parts


def _disk_lacks(disk: Disk) -> Iterator[str]:
    kind = disk.format or image_format(disk.path)
    if disk.limited and (disk.media == "cdrom" or disk.bus == "scsi"):
        yield f"rate limits of {disk.path} on SCSI or as a CD-ROM; nearest: as a virtio disk"
    if kind in formats.FORMATS and disk.media == "disk" and disk.bus != "scsi":
        if kind != "raw" and disk.snapshot:
            overlay = f"kvmkit disk create changes.qcow2 --base {disk.path}"
            yield f"-snapshot of the {kind} image {disk.path}; nearest: an overlay that you remove ({overlay})"
        if kind != "raw" and disk.serial:
            yield f"serial= of the {kind} image {disk.path}; nearest: without it"
    elif kind != "raw":
        convert = f"qemu-img convert -O raw {disk.path} disk.raw"
        where = "" if kind not in formats.FORMATS else " on SCSI or as a CD-ROM"
        yield f"{kind} images such as {disk.path}{where}; nearest: a raw one ({convert})"


def image_format(path: str) -> str:
    """What a disk image's first bytes say it is; raw where they say nothing, or can't be read (told when opened)."""
    try:
        with open(path, "rb") as file:
            head = file.read(16)
    except OSError:
        return "raw"
    for magic, name in MAGICS.items():
        if head.startswith(magic):
            return name
    return "raw"


MAGICS = {
    b"QFI\xfb": "qcow2",
    b"KDMV": "vmdk",
    b"COWD": "vmdk",
    b"vhdxfile": "vhdx",
    b"conectix": "vpc",
    b"QED\0": "qed",
}


def fitted_disks(description: Description) -> tuple[tuple[machine.Disk, ...], tuple[machine.ScsiDisk, ...]]:
    """(virtio-blk disks, SCSI units). What was on IDE is a virtio disk here, a CD-ROM a SCSI one."""
    disks: list[machine.Disk] = []
    scsi: list[machine.ScsiDisk] = []
    plain, units = _split(description)
    for disk in plain:
        direct = disk.cache in ("none", "directsync") and not disk.snapshot
        disks.append(
            machine.Disk(
                path=disk.path,
                format=disk.format if disk.format in formats.FORMATS else "",  # type: ignore[arg-type] # one of them
                readonly=disk.readonly,
                direct=direct,
                serial=disk.serial,
                snapshot=disk.snapshot,
                queues=disk.queues,
                bps=disk.bps,
                iops=disk.iops,
                bps_burst=disk.bps_burst,
                iops_burst=disk.iops_burst,
            )
        )
    for disk in units:
        cdrom = disk.media == "cdrom"
        scsi.append(
            machine.ScsiDisk(
                path=disk.path,
                readonly=disk.readonly or cdrom,
                cdrom=cdrom,
                serial=disk.serial,
                snapshot=disk.snapshot,
            )
        )
    return tuple(disks), tuple(scsi)


def _is_network(network: descriptions.Network) -> bool:
    """Whether its name is one that a network of ours can have."""
    if network.kind != "network":
        return True
    try:
        check_network(network.interface)
    except BadInput:
        return False
    return True


LOCAL = "allow=10.0.2.0/24"
"""What `restrict=on` is: the guest reaches the network's own addresses, and those who come by a forwarded port."""


def fitted_networks(description: Description) -> tuple[tuple[Network, ...], str]:
    """(the cards, the policy for what the guest may send)."""
    if not description.networks:
        return networking.default() if description.defaults else (), ""
    found = []
    for each in description.networks:
        if not _is_network(each):
            continue
        kind: Literal["user", "tap", "bridge", "socket", "network"] = "socket" if each.kind == "stream" else each.kind
        ports = (
            f"{forward.host_address or '0.0.0.0'}:{forward.host_port}:{forward.guest_port}/{forward.protocol}"
            for forward in each.forwards
        )
        name = each.interface or ("kvmkit%d" if kind == "tap" else "")
        found.append(Network(kind=kind, name="" if kind == "user" else name, mac=each.mac, publish=tuple(ports)))
    return tuple(found), LOCAL if any(each.restrict for each in description.networks) else ""


def differing(description: Description) -> list[str]:
    """What is another here than there: worth a word, no reason to stop."""
    found = list(fitted_firmware(description).differs)
    if description.defaults and not description.networks and not networking.default():
        found.append(f"QEMU would have given the guest a network; here that needs passt: {how('passt')}")
    if not description.one_socket:
        found.append(f"the guest sees its {description.cpus} CPUs as cores of one socket")
    for disk in description.disks:
        if disk.bus == "ide":
            kind = "a SCSI CD-ROM (/dev/sr0)" if disk.media == "cdrom" else "a virtio disk (/dev/vda, ...)"
            found.append(f"there is no IDE: the guest has {disk.path} as {kind}")
    if not description.kernel and set(description.boot_order) & set("np"):
        found.append(f"there is no start from the network: of -boot {description.boot_order}, disks alone are tried")
    if description.display == "window":
        where = "`kvmkit console` shows the guest's serial console"
        if not description.daemonize and not description.serials:
            where = "the guest's serial console is on this terminal"
        found.append(f"there is no window: {where}")
    return found
