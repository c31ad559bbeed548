"""Description <-> VmSpec: what is described to QEMU or libvirt, and what a VM of ours is made from."""

from __future__ import annotations

import os
from collections.abc import Iterator
from typing import Any, Literal

import msgspec

from kvmkit.block import formats
from kvmkit.errors import BadInput
from kvmkit.firmware import is_uefi
from kvmkit.machine import spec as machine
from kvmkit.machine.limits import Limits
from kvmkit.machine.network import Network as Card
from kvmkit.machine.networks import next_mac
from kvmkit.manager.description import MIB, Description, Disk, Firmware, Forward, Memory, Network, Serial
from kvmkit.manager.fit import LOCAL, boot_order, fitted_disks, fitted_input, fitted_networks, has_balloon
from kvmkit.manager.qemu_limits import plain
from kvmkit.manager.spec import VmSpec
from kvmkit.net.options import parse_publish


def to_spec(description: Description) -> VmSpec:
    """The VM that a description asks for; `kvmkit.manager.fit.lacking` names what of it is left out."""
    disks, scsi = fitted_disks(description)
    networks, policy = fitted_networks(description)
    transport: Literal["mmio", "pci"] = "mmio" if description.board == "microvm" else "pci"
    size = description.memory.size
    firmware = "" if description.kernel else description.firmware.bios or "bios"
    order = boot_order(description)
    return VmSpec(
        name=description.name,
        accel=description.accel,
        memory=f"{size // MIB}M" if size % MIB == 0 else f"{size // 1024}K",
        hugepages=_hugepages(description.memory),
        memory_path=description.memory.path,
        preallocate=description.memory.preallocate,
        cpus=description.cpus,
        cpu=description.cpu or "max",
        kernel=description.kernel,
        initrd=description.initrd,
        append=description.append if description.kernel else None,
        firmware=firmware,
        boot_order=order if firmware else (),
        transport=transport,
        disks=disks,
        scsi=scsi,
        networks=networks,
        policy=policy,
        rng=description.rng,
        rng_limits=description.rng_limits,
        console_ports=description.ports,
        vhost_user=description.vhost_user,
        volumes=description.volumes,
        pmem=description.pmem,
        input=fitted_input(description),
        balloon=has_balloon(description),
        vsock=description.vsock,
        console=True,
        serial=_serial(description),
        pidfile=description.pidfile,
        debug_exit=description.debug_exit,
        reboot=description.reboot,
    )


def _serial(description: Description) -> str:
    """Where the console leads. A window's own is on the terminal here."""
    if not description.serials:
        return "" if description.display == "window" and not description.daemonize else "null"
    serial = description.serials[0]
    return {"stdio": "", "null": "null", "pty": "pty"}.get(serial.kind, f"{serial.kind}:{serial.path}")


def _hugepages(memory: Memory) -> Literal["", "default", "2M", "1G"]:
    return (memory.page or "default") if memory.hugepages and not memory.path else ""


def to_description(spec: VmSpec) -> tuple[Description, list[str]]:
    """(the description, what of the VM it can't hold, each in words)."""
    from kvmkit.machine import parse_size

    left = []
    if not spec.kernel and not spec.firmware:
        left.append(f"the image {spec.image or 'debian'}: only kvmkit has it; name a kernel, or a disk to start from")
    if spec.hugepages == "transparent":
        left.append("transparent huge pages: they are the host's to choose there")
    if spec.command:
        left.append(f"the command {' '.join(spec.command)}: it is for kvmkit's agent")
    if spec.timeout is not None:
        left.append(f"timeout {spec.timeout:g}")
    left += _ours_alone(spec)
    volumes = tuple(msgspec.structs.replace(each, tag=each.tagged(n)) for n, each in enumerate(spec.volumes))
    rng_limits = _rng_limits(spec.rng_limits, left)
    cpu = spec.cpu if spec.nested is None else f"{spec.cpu},{'+' if spec.nested else '-'}svm"
    disks = [
        Disk(
            path=disk.path,
            format=disk.format or formats.ENDINGS.get(os.path.splitext(disk.path)[1].lower(), "raw"),
            readonly=disk.readonly,
            cache="none" if disk.direct else "",
            serial=disk.serial,
            snapshot=disk.snapshot,
            queues=disk.queues,
            **_limits(disk, left),
        )
        for disk in spec.disks
    ]
    for unit in spec.scsi:
        media: Literal["disk", "cdrom"] = "cdrom" if unit.cdrom else "disk"
        readonly = unit.readonly or unit.cdrom
        disks.append(
            Disk(
                path=unit.path,
                format="raw",
                bus="scsi",
                media=media,
                readonly=readonly,
                serial=unit.serial,
                snapshot=unit.snapshot,
            )
        )
    for index, place in enumerate(spec.boot_order):
        disks[place] = msgspec.structs.replace(disks[place], boot_index=index)
    if spec.nested is not None:
        left.append("nested: written as svm; on an Intel host it is vmx")
    description = Description(
        name=spec.name,
        board="q35" if spec.transport == "pci" or is_uefi(spec.firmware) else "microvm",
        accel=spec.accel,
        cpu=cpu,
        cpus=spec.cpus,
        memory=Memory(
            size=parse_size(str(spec.memory)),
            path=spec.memory_path,
            hugepages=bool(spec.hugepages) and spec.hugepages != "transparent",
            page=spec.hugepages if spec.hugepages in ("2M", "1G") else "",
            preallocate=spec.preallocate,
            shared=bool(spec.volumes or spec.vhost_user),
        ),
        kernel=spec.kernel,
        initrd=spec.initrd,
        append=spec.append or "",
        firmware=Firmware(bios=spec.firmware if spec.firmware != "bios" else ""),
        disks=tuple(disks),
        networks=_networks(spec, left),
        defaults=False,
        serials=_serials(spec),
        pidfile=spec.pidfile,
        display="none",
        rng=spec.rng,
        rng_limits=rng_limits,
        ports=spec.console_ports,
        vhost_user=tuple(each for each in spec.vhost_user if each.kind != "generic"),
        volumes=volumes,
        pmem=spec.pmem,
        input=spec.input,
        balloon=spec.balloon,
        vsock=spec.vsock if spec.vsock not in (None, True, False) else None,
        debug_exit=spec.debug_exit,
        reboot=spec.reboot,
    )
    return description, left


def _networks(spec: VmSpec, left: list[str]) -> tuple[Network, ...]:
    found = []
    unasked = () if spec.alone else (Card(kind="user"),)
    for number, card in enumerate(unasked if spec.networks is None else spec.networks):
        mac = card.mac or (next_mac(spec.mac, number) if spec.mac else "")
        if card.kind == "switch" or card.kind == "none":
            left.append(f"the network {card.kind}={card.name}: only kvmkit has it")
            continue
        kind: Literal["user", "tap", "bridge", "stream", "network"] = "stream" if card.kind == "socket" else card.kind
        ports = [parse_publish(text) for text in card.publish]
        forwards = tuple(
            Forward(
                protocol="udp" if each.protocol == "udp" else "tcp",
                host_address=each.address,
                host_port=each.port,
                guest_address="",
                guest_port=each.guest_port,
            )
            for each in ports
        )
        restrict = spec.policy == LOCAL and kind == "user"
        found.append(Network(kind=kind, interface=card.name, mac=mac, forwards=forwards, restrict=restrict))
        if card.limited:
            left.append(f"the rate limit of a network card: {card.told()}")
    if spec.policy not in ("", "all") and not (found and all(each.restrict for each in found)):
        left.append(f"the policy {spec.policy}")
    return tuple(found)


def _ours_alone(spec: VmSpec) -> Iterator[str]:
    """What of a VM neither QEMU's words nor libvirt's XML, as they are written here, can hold."""
    if spec.root_size:
        yield f"root_size {spec.root_size}: the image's root disk is kvmkit's"
    if spec.rng_limits != Limits() and not spec.rng:
        yield "the rate limits of rng, which is not there"
    if spec.vsock is True:
        yield "vsock: name the guest's CID"
    for device in spec.vhost_user:
        if device.kind == "generic":
            yield f"the vhost-user device {device.id} at {device.socket}"
    for volume in spec.volumes:
        if volume.guest:
            yield f"where {volume.host} is in the guest, {volume.guest}: mount it there by its tag"
    for disk in spec.disks:
        if disk.backing or disk.key:
            yield f"{'the base' if disk.backing else 'the key'} of {disk.path}"


def _limits(disk: machine.Disk, left: list[str]) -> dict[str, Any]:
    fields, more = plain(disk)
    left += [f"{text} ({disk.path})" for text in more]
    return fields


def _rng_limits(limits: Limits, left: list[str]) -> Limits:
    """Bytes alone, in periods as long as the burst lasts."""
    if limits.iops:
        left.append(f"rng: iops={limits.iops:g}: bytes alone are limited there")
    return Limits(bps=limits.bps, bps_burst=limits.bps_burst) if limits.bps else Limits()


def _serials(spec: VmSpec) -> tuple[Serial, ...]:
    kind, _, path = spec.serial.partition(":")
    found: dict[str, Serial] = {
        "": Serial(kind="stdio"),
        "null": Serial(kind="null"),
        "pty": Serial(kind="pty"),
        "file": Serial(kind="file", path=path),
        "unix": Serial(kind="unix", path=path),
    }
    return (found[kind],)


def write_spec(spec: VmSpec) -> str:
    """The spec as TOML that `kvmkit run FILE.toml` reads: only what differs from the defaults."""
    from kvmkit.manager.toml import table

    values = msgspec.to_builtins(spec)
    if not isinstance(values, dict):
        raise BadInput("a spec is a table")
    for key in ("disks", "scsi"):
        values[key] = [_said(one) for one in getattr(spec, key)]
        if not values[key]:
            del values[key]
    values["rng_limits"] = _said(spec.rng_limits)
    if not values["rng_limits"]:
        del values["rng_limits"]
    return table(values, "")


def _said(value: msgspec.Struct) -> dict[str, object]:
    """The fields that are not as they are where nothing is said."""
    fields = zip(value.__struct_fields__, value.__struct_defaults__[-len(value.__struct_fields__) :], strict=False)
    defaults = {name: default for name, default in fields if default is not msgspec.NODEFAULT}
    told = {name: getattr(value, name) for name in value.__struct_fields__}
    return {name: given for name, given in told.items() if name not in defaults or defaults[name] != given}
