"""A VM as people describe it to QEMU or libvirt: plain data, before it is known what our machine has of it."""

from __future__ import annotations

from typing import Literal

import msgspec

from kvmkit.machine.limits import Limits
from kvmkit.machine.pmem import Pmem
from kvmkit.machine.spec import ConsolePort
from kvmkit.machine.vhost_user import VhostUser
from kvmkit.machine.volume import Volume

MIB = 1 << 20


class Disk(Limits, frozen=True, kw_only=True):
    """`format` '' leaves it to be found out. `snapshot`: writes go to a temporary overlay. `queues` 0: not said."""

    path: str
    format: str = ""
    bus: Literal["virtio", "ide", "scsi"] = "virtio"
    media: Literal["disk", "cdrom"] = "disk"
    readonly: bool = False
    snapshot: bool = False
    cache: str = ""
    serial: str = ""
    boot_index: int | None = None
    queues: int = 0


class Forward(msgspec.Struct, frozen=True, kw_only=True):
    """A port of the host whose connections go to one of the guest. An empty address: any (host), the first (guest)."""

    protocol: Literal["tcp", "udp"]
    host_address: str
    host_port: int
    guest_address: str
    guest_port: int


class Network(msgspec.Struct, frozen=True, kw_only=True):
    """One network card and what it hangs on: `user` (no privileges), a TAP device, a bridge, a UNIX stream socket, or
    a network of the manager's own (libvirt's, kvmkit's)."""

    kind: Literal["user", "tap", "bridge", "stream", "network"]
    interface: str = ""
    """The TAP device or the bridge ('' lets one be made), the socket's path, or the network's name."""
    mac: str = ""
    forwards: tuple[Forward, ...] = ()
    restrict: bool = False


class Serial(msgspec.Struct, frozen=True, kw_only=True):
    """Where a serial port leads. `path` for file and unix."""

    kind: Literal["stdio", "file", "pty", "unix", "null"]
    path: str = ""


class Memory(msgspec.Struct, frozen=True, kw_only=True):
    """Guest RAM in bytes. `path`: a hugetlbfs directory it comes from; `hugepages`: huge pages wherever mounted."""

    size: int = 128 * MIB
    path: str = ""
    hugepages: bool = False
    page: Literal["", "2M", "1G"] = ""
    """The size of a huge page; '' is the host's default."""
    preallocate: bool = False
    shared: bool = False


class Firmware(msgspec.Struct, frozen=True, kw_only=True):
    """`bios`: one image, as -bios takes it. `code` and `variables`: UEFI in two flash images."""

    bios: str = ""
    code: str = ""
    variables: str = ""
    made: bool = False
    """`variables` is made if it is not there, as libvirt and kvmkit do; QEMU wants it there."""
    secure: bool = False
    """Secure Boot is asked for, with code that has it."""
    keys: bool = True
    """With it, variables that are made have keys in them."""
    efi: bool = False
    """UEFI was asked for by that word, whichever image is it."""
    template: str = ""
    """What `variables` is made of; without that, what the guest writes goes with the VM."""


class Description(msgspec.Struct, frozen=True, kw_only=True):
    """A whole VM. What QEMU gives where nothing is said (128 MiB, one CPU) is given here too."""

    name: str = ""
    uuid: str = ""
    board: Literal["pc", "q35", "microvm"] = "pc"
    accel: Literal["auto", "kvm", "tcg"] = "auto"
    cpu: str = ""
    cpu_enforce: bool = False
    """Without one of the model's features it is not to start."""
    cpus: int = 1
    one_socket: bool = True
    """Nobody asked for sockets, dies or threads: the CPUs may be cores of one socket."""
    memory: Memory = Memory()
    kernel: str = ""
    initrd: tuple[str, ...] = ()
    append: str = ""
    firmware: Firmware = Firmware()
    boot_order: str = ""
    disks: tuple[Disk, ...] = ()
    networks: tuple[Network, ...] = ()
    defaults: bool = True
    """Nobody turned off what a VM gets unasked: a network card."""
    serials: tuple[Serial, ...] = ()
    display: Literal["none", "window", "vnc"] = "window"
    vnc: str = ""
    """HOST:PORT, or unix:PATH."""
    graphics: bool = False
    """A graphics card was asked for by name."""
    input: tuple[str, ...] = ()
    """Of keyboard, mouse, tablet."""
    rng: bool = False
    rng_limits: Limits = Limits()
    ports: tuple[ConsolePort, ...] = ()
    """Ports of virtio-serial; `hvc0` is a console."""
    vhost_user: tuple[VhostUser, ...] = ()
    volumes: tuple[Volume, ...] = ()
    pmem: tuple[Pmem, ...] = ()
    balloon: bool = False
    vsock: int | None = None
    """The guest's context id."""
    debug_exit: bool = False
    reboot: bool = True
    snapshot: bool = False
    daemonize: bool = False
    pidfile: str = ""
