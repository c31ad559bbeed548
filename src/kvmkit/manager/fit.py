"""What of a Description our machine does not have: named, so that nothing is left out silently."""

from __future__ import annotations

from collections.abc import Iterator

from kvmkit.manager.description import Description


def lacking(description: Description) -> list[str]:
    """What can't be done as described, each in words, with the option that asked for it."""
    return list(_lacking(description))


def _lacking(description: Description) -> Iterator[str]:
    if not description.kernel:
        yield "a start without -kernel (by firmware, from a disk)"
    for disk in description.disks:
        yield f"the {disk.media} {disk.path}"
    for network in description.networks:
        yield f"the {network.kind} network"
    firmware = description.firmware
    for image in (firmware.bios, firmware.code, firmware.variables):
        if image:
            yield f"the firmware {image}"
    for serial in description.serials:
        if serial.kind != "stdio":
            yield f"a serial port on {serial.kind}{f' {serial.path}' if serial.path else ''}"
    if len(description.serials) > 1:
        yield "more than one serial port"
    if description.display == "vnc":
        yield f"VNC at {description.vnc}"
    if description.graphics:
        yield "a graphics card"
    for device in description.input:
        yield f"a {device}"
    for there, name in ((description.rng, "virtio-rng"), (description.balloon, "virtio-balloon")):
        if there:
            yield name
    if description.vsock is not None:
        yield "virtio-vsock"
    if description.daemonize:
        yield "-daemonize"
    if description.pidfile:
        yield "-pidfile"


def unasked(description: Description) -> list[str]:
    """What QEMU would have given without being asked and our machine does not: worth a word, no reason to stop."""
    found = []
    if description.defaults and not description.networks:
        found.append("QEMU would have given the guest a network card; this machine has none")
    if description.display == "window":
        found.append("there is no window: the guest's serial console is on this terminal")
    return found
