"""What of a machine can be changed while it runs: sizes and rates of its disks, and what is attached to its adapter.

Each takes effect at once, and stays when the guest resets. Text is as a user gives it; all raise BadInput for what
can't be, and KvmkitError when the machine has ended.
"""

from __future__ import annotations

import os
import stat
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from msgspec.structs import replace

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.machine.limits import KEYS, parse_limit, parse_limits
from kvmkit.machine.spec import parse_size

if TYPE_CHECKING:
    from kvmkit.machine import Machine
    from kvmkit.machine.board import Board
    from kvmkit.machine.scsi import ScsiAdapter
    from kvmkit.machine.spec import ScsiDisk
    from kvmkit.virtio.blk import Blk


def _number(where: str, text: str, count: int, what: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:9]) >= count:
        has = f"0 to {count - 1}" if count > 1 else "0" if count else "none"
        raise BadInput(f"{where}: {text!r}: give the number of one of its {what}: it has {has}")
    return int(text)


def set_disk(machine: Machine, text: str, where: str = "") -> str:
    """`N[,bps=..][,iops=..][,bps_burst=..][,iops_burst=..][,size=2G|,size=now]`; what it is now, in words."""
    where = where or f"--disk {text}"
    first, *options = text.split(",")
    number = _number(where, first, len(machine.spec.disks), "disks")
    given: dict[str, Any] = {}
    size: int | None = None
    for option in options:
        limit = parse_limit(where, option)
        if limit is not None:
            given[limit[0]] = limit[1]
        elif option == "size=now":
            size = 0
        elif option.startswith("size="):
            size = parse_size(option.removeprefix("size="), where, least=1)
        else:
            known = f"{', '.join(f'{key}=' for key in KEYS)}, size=2G and size=now (what its file has)"
            raise BadInput(f"{where}: no option {option!r}; there are {known}")
    wanted = replace(machine.spec.disks[number], **given)
    wanted.check_limits(where)

    def change(board: Board) -> str:
        from kvmkit.virtio.blk import Blk

        blk = board.virtio.disks[number]
        if size is not None:
            if not isinstance(blk, Blk):
                raise BadInput(f"{where}: the size of a disk that is not raw can't be changed while the VM runs")
            if size:
                _grow(where, blk, size)
            blk.resize()
        if given:
            wanted.limit(blk)
            disks = machine.spec.disks
            machine.spec = replace(machine.spec, disks=(*disks[:number], wanted, *disks[number + 1 :]))
        return f"disk {number}: {blk.size} bytes, {wanted.told()}"

    return machine.change(change)


def _grow(where: str, blk: Blk, size: int) -> None:
    if not stat.S_ISREG(os.fstat(blk.disk.fd).st_mode):
        raise BadInput(f"{where}: {blk.disk.path} is a block device: enlarge it with its own tools, then give size=now")
    if blk.disk.readonly:
        raise BadInput(f"{where}: {blk.disk.path} is only read here")
    if size < blk.disk.measure():
        raise BadInput(f"{where}: smaller than it is: what is behind that would be lost; a disk can only grow here")
    try:
        os.ftruncate(blk.disk.fd, size)
    except OSError as error:
        raise KvmkitError(f"{where}: {error.strerror}") from error


def inject(machine: Machine, what: str, events: Sequence[tuple[int, int, int]]) -> bool:
    """Have its "keyboard" or "tablet" send `events`; False: the guest takes none now."""

    def change(board: Board) -> bool:
        found = [device for device in board.virtio.inputs if device.what == what]
        if not found:
            raise BadInput(f"it has no {what}: give it --input {what} at its start")
        return found[0].inject(events)

    return machine.change(change)


def set_rng(machine: Machine, text: str) -> str:
    """`bps=..[,iops=..]`; what it is now, in words."""
    limits = parse_limits(f"--rng {text}", text)

    def change(board: Board) -> str:
        found = [device for device in board.virtio.devices if device.name == "rng"]
        if not found:
            raise BadInput("it has no entropy device: give it --rng at its start")
        limits.limit(found[0])
        machine.spec = replace(machine.spec, rng_limits=limits)
        return f"rng: {limits.told()}"

    return machine.change(change)


def set_net(machine: Machine, text: str) -> str:
    """`N[,link=up|down][,bps=..]...`; what it is now, in words."""
    where = f"--net {text}"
    first, *options = text.split(",")
    number = _number(where, first, len(machine.spec.networks), "network cards")
    given: dict[str, Any] = {}
    link: bool | None = None
    for option in options:
        limit = parse_limit(where, option)
        if limit is not None:
            given[limit[0]] = limit[1]
        elif option in ("link=up", "link=down"):
            link = option == "link=up"
        else:
            known = f"link=up, link=down, {', '.join(f'{key}=' for key in KEYS)}"
            raise BadInput(f"{where}: no option {option!r}; there are {known}")
    wanted = replace(machine.spec.networks[number], **given)
    wanted.check_limits(where)

    def change(board: Board) -> str:
        card = board.virtio.networks[number]
        if given:
            wanted.limit(card)
            cards = machine.spec.networks
            machine.spec = replace(machine.spec, networks=(*cards[:number], wanted, *cards[number + 1 :]))
        if link is not None:
            card.set_link(link)
        return f"net {number}: link {'up' if card.link else 'down'}, {wanted.told()}"

    return machine.change(change)


def set_policy(machine: Machine, text: str) -> str:
    """`all`, `deny`, `dns` or `allow=ADDRESS:PORT,...`, for all its network cards; what it is now, in words."""
    from kvmkit.machine.networks import policy_of

    policies = [policy_of(network, text) for network in machine.spec.networks]
    if not policies:
        raise BadInput(f"--policy {text}: it has no network card")

    def change(board: Board) -> str:
        for card, policy in zip(board.virtio.networks, policies, strict=True):
            card.set_policy(policy)
        machine.spec = replace(machine.spec, policy=text)
        return f"policy: {text or 'all'}"

    return machine.change(change)


def _adapter(board: Board) -> ScsiAdapter:
    if board.virtio.scsi is None:
        raise BadInput("it has no SCSI adapter: give it a --scsi device at its start")
    return board.virtio.scsi


def attach_scsi(machine: Machine, unit: ScsiDisk) -> int:
    """Add a SCSI disk or CD-ROM; its target. It goes again when the guest resets."""
    unit.check()
    return machine.change(lambda board: _adapter(board).attach(unit))


def detach_scsi(machine: Machine, target: int) -> None:
    """Take a SCSI device away, as pulling its cable does; its file is closed."""
    machine.change(lambda board: _adapter(board).detach(target))


def set_scsi(machine: Machine, text: str) -> str:
    """`N,disc=PATH`: another disc in the CD-ROM drive at target N; `N,disc=` takes it out; `N,bps=..`: its limits."""
    where = f"--scsi {text}"
    first, _comma, option = text.partition(",")
    target = _number(where, first, 256, "SCSI targets")
    if not option.startswith("disc="):
        if not option:
            raise BadInput(f"{where}: give N,disc=PATH, N,disc= to take the disc out, or limits such as N,iops=500")
        limits = parse_limits(where, option)
        limits.check_limits(where)
        machine.change(lambda board: _adapter(board).limit(target, limits))
        return f"SCSI target {target}: {limits.told()}"
    path = option.removeprefix("disc=")
    machine.change(lambda board: _adapter(board).change_disc(target, path))
    return f"SCSI target {target}: {path or 'no disc'}"


def set_memory_target(machine: Machine, text: str) -> str:
    """How much memory the guest is to keep; its balloon gives the rest back, as it can spare it."""
    where = f"--memory-target {text}"
    size = parse_size(text, where)
    if size > machine.spec.memory:
        raise BadInput(f"{where}: the guest has {machine.spec.memory >> 20}M")

    def change(board: Board) -> str:
        balloon = board.virtio.balloon
        if balloon is None:
            raise BadInput("it has no balloon: give it --balloon at its start")
        if not balloon.driver_ok:
            raise KvmkitError(f"the guest does not use its balloon: its kernel needs {balloon.driver}")
        balloon.set_target(size)
        return f"memory: {size >> 20}M of {machine.spec.memory >> 20}M are to be the guest's"

    return machine.change(change)


SETTABLE = {
    "disk": set_disk,
    "rng": set_rng,
    "scsi": set_scsi,
    "net": set_net,
    "policy": set_policy,
    "memory-target": set_memory_target,
}
"""What `kvmkit set` can change, by its option."""
