"""What a machine is to be, as plain data: checked before anything is made."""

from __future__ import annotations

import os
import re
from typing import Literal

import msgspec

from kvmkit import firmware
from kvmkit.block.formats import FORMATS
from kvmkit.errors import BadInput
from kvmkit.machine.limits import KEYS, Limits, parse_limit
from kvmkit.machine.network import Network
from kvmkit.machine.pmem import MOST_PMEM, Pmem
from kvmkit.machine.vhost_user import VhostUser
from kvmkit.machine.volume import MOST_VOLUMES, Volume

MIB = 1 << 20
GIB = 1 << 30
SMALLEST = 1 * MIB
PAGE = 4096
MAX_CPUS = 4096
MAX_DISK_QUEUES = 8
_UNITS = {"": MIB, "k": 1 << 10, "m": MIB, "g": GIB, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


class Disk(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A disk image or a block device, by virtio-blk. `queues` 0: one for each vCPU, up to 8.

    What is not raw, and nbd://, iscsi:// and rbd:// instead of a path, goes by qemu-storage-daemon. `backing` is a base
    in another directory that a qcow2 image may have, `key` a file with the passphrase of an encrypted one.
    """

    path: str
    readonly: bool = False
    direct: bool = False
    """Past the host's page cache."""
    serial: str = ""
    queues: int = 0
    snapshot: bool = False
    """Changes go to a copy, and with the machine."""
    format: Literal["", "raw", "qcow2", "luks", "vmdk", "vhdx", "vdi"] = ""
    backing: str = ""
    key: str = ""

    @property
    def served(self) -> bool:
        """Whether another process serves it. Raises BadInput when its name and what it holds disagree."""
        from kvmkit.block import formats

        return bool(formats.remote(self.path)) or formats.decide(self.path, self.format) != "raw"

    def _check_served(self) -> None:
        from kvmkit.block.formats import decide
        from kvmkit.vhost_user import storage

        if self.serial or self.snapshot:
            what = "snapshot" if self.snapshot else "serial"
            raise BadInput(f"--disk {self.path}: {what}: is for raw disks")
        storage.check(self.path, decide(self.path, self.format), key=self.key, backing=self.backing)

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be; the file is looked at, and let go again."""
        from kvmkit.block.file import DiskFile

        if not 0 <= self.queues <= MAX_DISK_QUEUES:
            raise BadInput(f"--disk {self.path}: queues={self.queues}: 1 to {MAX_DISK_QUEUES} can be")
        if len(self.serial.encode()) > 20:
            raise BadInput(f"--disk {self.path}: serial={self.serial}: a serial number has up to 20 bytes")
        self.check_limits(f"--disk {self.path}")
        if self.served:
            self._check_served()
            return
        if self.backing or self.key:
            raise BadInput(f"--disk {self.path}: backing= and key= are for disks that are not raw")
        raw = self.format == "raw"
        DiskFile(self.path, readonly=self.readonly or self.snapshot, direct=self.direct, raw=raw).close()


class ScsiDisk(Limits, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A raw image file or a block device, by virtio-scsi: a disk, or a CD-ROM that is only read."""

    path: str
    readonly: bool = False
    cdrom: bool = False
    serial: str = ""
    snapshot: bool = False
    """Changes go to a copy, and with the machine."""

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be; the file is looked at, and let go again."""
        from kvmkit.block.file import DiskFile

        self.check_limits(f"--scsi {self.path}")
        DiskFile(self.path, readonly=self.readonly or self.cdrom or self.snapshot).close()


class Vsock(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """Sockets between host and guest. `path`: this side's socket; what the guest reaches at port P listens at path_P.

    `reserved`: ports of the host's that only a guest's root reaches, from a port below 1024.
    """

    cid: int = 0
    """0: 3, or one of its own for a VM with a name."""
    path: str = ""
    reserved: tuple[int, ...] = ()
    optional: bool = False
    """Nobody asked for it: nothing is said when the guest does not use it."""

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be."""
        if self.cid and not 3 <= self.cid < 0xFFFFFFFF:
            raise BadInput(f"--vsock {self.cid}: a guest's CID is a number from 3 to 4294967294")


class ConsolePort(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A port of virtio-console, and the socket where the host's programs have it. `hvc0` is a console."""

    name: str
    path: str = ""
    """Empty: NAME.port in the VM's directory."""


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine. Sizes are bytes, times seconds, paths as they are on the host.

    `console`: "log" keeps the end of what the guest says on its first serial port; "attach" also passes it on to
    the descriptors that `Machine` is given, both ways.
    """

    kernel: str = ""
    initrd: tuple[str, ...] = ()
    append: str = ""
    firmware: str = ""
    """What starts a disk: the path of a BIOS or UEFI image, or "bios" (the host's SeaBIOS) or "uefi" (its OVMF), which
    also starts `kernel`."""
    nvram: str = ""
    """With UEFI, the file that keeps its variables; made if it is not there. None: they go with the machine."""
    nvram_template: str = ""
    """What that file is made of. None: what belongs to the firmware."""
    secure_boot: bool = False
    """With firmware "uefi", only start what Microsoft's keys have signed, or those in `nvram`."""
    boot_order: tuple[int, ...] = ()
    """Which disks firmware tries, first to last: places in `disks`, and after them in `scsi`. None: as they come."""
    accel: str = "auto"
    cpu: str = "max"
    cpus: int = 1
    memory: int = 512 * MIB
    console: Literal["log", "attach"] = "log"
    transport: Literal["mmio", "pci"] = "mmio"
    """How the guest finds its virtio devices: described one by one in ACPI, or on a PCI Express bus, where UEFI looks
    for them."""
    debug_exit: bool = False
    reboot: bool = False
    """Start again when the guest resets; without it, a reset ends the machine."""
    triple_fault: Literal["end", "reset"] = "end"
    """What a triple fault is: the end, with a report, or (as on a PC) a reset."""
    timeout: float | None = None
    hugepages: Literal["", "default", "2M", "1G", "transparent"] = ""
    """Guest RAM on reserved huge pages of the kernel's default size or of this one, or on transparent ones."""
    memory_path: str = ""
    """Guest RAM in a file here: a mount of hugetlbfs, as QEMU's -mem-path."""
    preallocate: bool = False
    """Have all of guest RAM before the guest starts."""
    nested: bool | None = None
    """Whether the guest sees vmx or svm, to run VMs of its own; None: as the CPU model has it."""
    disks: tuple[Disk, ...] = ()
    scsi: tuple[ScsiDisk, ...] = ()
    """Units of one virtio-scsi adapter: targets 0, 1, 2, ..., each with LUN 0."""
    networks: tuple[Network, ...] = ()
    policy: str = ""
    """What the guest may send; see net/policy.py."""
    pmem: tuple[Pmem, ...] = ()
    """Files that are the guest's persistent memory."""
    input: tuple[Literal["keyboard", "tablet"], ...] = ()
    vhost_user: tuple[VhostUser, ...] = ()
    """Devices that other processes serve."""
    volumes: tuple[Volume, ...] = ()
    """Directories of the host's, shared by virtiofsd."""
    rng: bool = False
    """Give the guest entropy from the host (virtio-rng)."""
    rng_limits: Limits = Limits()
    vsock: Vsock | None = None
    console_ports: tuple[ConsolePort, ...] = ()
    balloon: bool = False
    """Memory that the guest can give back while it runs (virtio-balloon)."""

    @property
    def throws_away(self) -> bool:
        """Whether a disk's changes go with the machine."""
        disks = any(disk.snapshot for disk in self.disks) or any(unit.snapshot for unit in self.scsi)
        return disks or (self.uefi and not self.nvram)

    @property
    def on_pci(self) -> bool:
        return self.transport == "pci" or self.uefi

    @property
    def uefi(self) -> bool:
        return firmware.is_uefi(self.firmware)

    @property
    def all_boot_order(self) -> tuple[int, ...]:
        """`boot_order`, then the disks it leaves out: as they come, CD-ROMs last."""
        units: tuple[Disk | ScsiDisk, ...] = (*self.disks, *self.scsi)
        cdroms = [place for place, unit in enumerate(units) if isinstance(unit, ScsiDisk) and unit.cdrom]
        rest = [*(place for place in range(len(units)) if place not in cdroms), *cdroms]
        return (*self.boot_order, *(place for place in rest if place not in self.boot_order))

    @property
    def cpu_text(self) -> str:
        """The CPU model with its changes, as engines take it."""
        return self.cpu if self.nested is None else f"{self.cpu},{'+' if self.nested else '-'}nested"

    @property
    def shares_memory(self) -> bool:
        """Whether other processes are to map guest RAM."""
        return bool(self.vhost_user or self.volumes) or any(disk.served for disk in self.disks)

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be. Engine, model and files are looked at when they are used."""
        if self.cpus < 1 or self.cpus > MAX_CPUS:
            raise BadInput(f"--cpus {self.cpus}: a machine has 1 to {MAX_CPUS} vCPUs")
        check_memory(self.memory, f"memory of {self.memory} bytes")
        if self.timeout is not None and not 0 < self.timeout < 1e9:
            raise BadInput(f"--timeout {self.timeout:g}: give seconds, more than 0")
        if "\0" in self.append:
            raise BadInput("--append: a kernel command line can't hold a null byte")
        self.rng_limits.check_limits("--rng-limit")
        self._check_start()
        self._check_disks()
        for network in self.networks:
            network.check()
        for pmem in self.pmem:
            pmem.check()
        if len(self.pmem) > MOST_PMEM:
            raise BadInput(f"--pmem: given {len(self.pmem)} times; {MOST_PMEM} can be")
        for device in self.vhost_user:
            device.check()
        for volume in self.volumes:
            volume.check()
        if len(self.volumes) > MOST_VOLUMES:
            raise BadInput(f"--volume: given {len(self.volumes)} times; {MOST_VOLUMES} can be")
        if self.vsock is not None:
            self.vsock.check()

    def _check_start(self) -> None:
        uefi = self.uefi
        if not uefi and bool(self.kernel) == bool(self.firmware):
            raise BadInput("a machine starts a kernel (--kernel) or firmware (--firmware): name one of them")
        if not self.kernel and (self.initrd or self.append):
            raise BadInput(
                "--firmware: the disk has the kernel's initrd and parameters: leave --initrd and --append away"
            )
        if not uefi and (self.nvram or self.nvram_template or self.secure_boot):
            raise BadInput("--nvram and --secure-boot go with UEFI: --firmware uefi")
        if self.secure_boot and self.firmware != firmware.UEFI:
            raise BadInput("--secure-boot chooses the host's own firmware: --firmware uefi")
        if not all(0 <= place < len(self.disks) + len(self.scsi) for place in self.boot_order):
            raise BadInput(f"boot order {self.boot_order}: there are {len(self.disks) + len(self.scsi)} disks")

    def _check_disks(self) -> None:
        seen: dict[tuple[int, int], bool] = {}
        units: tuple[Disk | ScsiDisk, ...] = (*self.disks, *self.scsi)
        for disk in units:
            disk.check()
            if "://" in disk.path and not os.path.exists(disk.path):
                continue
            found = os.stat(disk.path)
            key = (found.st_dev, found.st_ino)
            readonly = disk.readonly or disk.snapshot or (isinstance(disk, ScsiDisk) and disk.cdrom)
            if not (readonly and seen.get(key, True)) and key in seen:
                raise BadInput(f"--disk {disk.path}: given twice; a disk that is written can be attached once")
            seen[key] = readonly


def parse_disk(text: str) -> Disk:
    """A Disk of PATH[,ro][,snapshot][,direct][,serial=TEXT][,queues=N][,format=F][,backing=PATH][,key=FILE][,LIMIT]...

    A limit is bps=N, iops=N, bps_burst=N or iops_burst=N. A comma in PATH is written twice. Raises BadInput.
    """
    path, options = path_and_options("--disk", text)
    given: dict[str, str | float | bool] = {}
    for option in options:
        key, _equals, value = option.partition("=")
        if option in ("ro", "direct", "snapshot"):
            given["readonly" if option == "ro" else option] = True
        elif (key in ("serial", "backing", "key") and value) or (key == "format" and value in FORMATS):
            given[key] = value
        elif key == "queues" and value.isascii() and value.isdigit() and 0 < int(value[:9]) <= MAX_DISK_QUEUES:
            given[key] = int(value)
        elif (limit := parse_limit(f"--disk {text}", option)) is not None:
            given[limit[0]] = limit[1]
        else:
            limits = ", ".join(f"{each}=N" for each in KEYS)
            known = f"ro, snapshot, direct, serial=TEXT, queues=1..{MAX_DISK_QUEUES}, {limits}"
            known += f", format={'|'.join(FORMATS)}, backing=PATH, key=FILE"
            raise BadInput(f"--disk {text}: no option {option!r}; there are {known} (a comma in a path is written ,,)")
    return msgspec.convert({"path": path, **given}, Disk)


def parse_console_port(text: str) -> ConsolePort:
    """A ConsolePort of NAME or NAME=PATH. Raises BadInput."""
    name, equals, path = text.partition("=")
    if not name or (equals and not path):
        raise BadInput(f"--console-port {text}: give NAME, or NAME=PATH of its socket, such as hvc0=/tmp/hvc0.sock")
    return ConsolePort(name=name, path=os.path.abspath(path) if path else "")


def parse_scsi(text: str) -> ScsiDisk:
    """A ScsiDisk of PATH[,ro][,snapshot][,cd][,serial=TEXT][,LIMIT]...; a comma in PATH is written twice.

    Raises BadInput.
    """
    path, options = path_and_options("--scsi", text)
    given: dict[str, str | float | bool] = {}
    for option in options:
        if option in ("ro", "cd", "snapshot"):
            given[{"ro": "readonly", "cd": "cdrom"}.get(option, option)] = True
        elif option.startswith("serial=") and option != "serial=":
            given["serial"] = option.removeprefix("serial=")
        elif (limit := parse_limit(f"--scsi {text}", option)) is not None:
            given[limit[0]] = limit[1]
        else:
            known = f"ro, snapshot, cd, serial=TEXT, {', '.join(f'{each}=N' for each in KEYS)}"
            raise BadInput(f"--scsi {text}: no option {option!r}; there are {known}")
    return msgspec.convert({"path": path, **given}, ScsiDisk)


def path_and_options(option: str, text: str) -> tuple[str, list[str]]:
    path, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    if not path:
        raise BadInput(f"{option} {text}: give a path first, such as {option} disk.raw,ro")
    return path, options


def parse_size(text: str, what: str = "--memory", *, least: int = 0) -> int:
    """Bytes for 512M, 2G, 1.5G or 512 (MiB), rounded up to pages. Raises BadInput for what can't be.

    With `least` it is no memory of a guest's, but at least that many bytes.
    """
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"{what} {text}: not a size; give a number and a unit, such as 512M or 2G")
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if len(match[1]) < 20 else 1 << 62
    size = (size + PAGE - 1) // PAGE * PAGE
    if not least:
        check_memory(size, f"{what} {text}")
    elif not least <= size < 1 << 62:
        raise BadInput(f"{what} {text}: no size that can be")
    return size


def check_memory(size: int, where: str) -> None:
    """Raise BadInput unless a guest can have `size` bytes on this host."""
    if size < SMALLEST:
        raise BadInput(f"{where}: a machine needs at least {SMALLEST // MIB}M")
    if size % PAGE:
        raise BadInput(f"{where}: not a multiple of {PAGE}")
    host = host_memory()
    if size > host:
        raise BadInput(f"{where}: more than the {host // MIB}M this host has")


def host_memory() -> int:
    """Bytes of RAM in this host."""
    return os.sysconf("SC_PHYS_PAGES") * os.sysconf("SC_PAGE_SIZE")
