"""What a machine is to be, as plain data: checked before anything is made."""

from __future__ import annotations

import os
import re
from typing import Literal

import msgspec

from kvmkit.errors import BadInput

MIB = 1 << 20
GIB = 1 << 30
SMALLEST = 1 * MIB
PAGE = 4096
MAX_CPUS = 4096
MAX_DISK_QUEUES = 8
_UNITS = {"": MIB, "k": 1 << 10, "m": MIB, "g": GIB, "t": 1 << 40}
_SIZE = re.compile(r"(\d+(?:\.\d+)?)\s*([kmgt]?)(?:i?b)?", re.IGNORECASE | re.ASCII)


class Disk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A raw image file or a block device, by virtio-blk. `queues` 0: one for each vCPU, up to 8."""

    path: str
    readonly: bool = False
    direct: bool = False
    """Past the host's page cache."""
    serial: str = ""
    queues: int = 0

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be; the file is looked at, and let go again."""
        from kvmkit.block.file import DiskFile

        if not 0 <= self.queues <= MAX_DISK_QUEUES:
            raise BadInput(f"--disk {self.path}: queues={self.queues}: 1 to {MAX_DISK_QUEUES} can be")
        if len(self.serial.encode()) > 20:
            raise BadInput(f"--disk {self.path}: serial={self.serial}: a serial number has up to 20 bytes")
        DiskFile(self.path, readonly=self.readonly, direct=self.direct).close()


class ScsiDisk(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """A raw image file or a block device, by virtio-scsi: a disk, or a CD-ROM that is only read."""

    path: str
    readonly: bool = False
    cdrom: bool = False
    serial: str = ""

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be; the file is looked at, and let go again."""
        from kvmkit.block.file import DiskFile

        DiskFile(self.path, readonly=self.readonly or self.cdrom).close()


class MachineSpec(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """One machine. Sizes are bytes, times seconds, paths as they are on the host.

    `console`: "log" keeps the end of what the guest says on its first serial port; "attach" also passes it on to
    the descriptors that `Machine` is given, both ways.
    """

    kernel: str
    initrd: tuple[str, ...] = ()
    append: str = ""
    accel: str = "auto"
    cpu: str = "max"
    cpus: int = 1
    memory: int = 512 * MIB
    console: Literal["log", "attach"] = "log"
    transport: Literal["mmio", "pci"] = "mmio"
    """How the guest finds its virtio devices: described one by one in ACPI, or on a PCI Express bus."""
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
    rng: bool = False
    """Give the guest entropy from the host (virtio-rng)."""

    @property
    def cpu_text(self) -> str:
        """The CPU model with its changes, as engines take it."""
        return self.cpu if self.nested is None else f"{self.cpu},{'+' if self.nested else '-'}nested"

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be. Engine, model and files are looked at when they are used."""
        if self.cpus < 1 or self.cpus > MAX_CPUS:
            raise BadInput(f"--cpus {self.cpus}: a machine has 1 to {MAX_CPUS} vCPUs")
        check_memory(self.memory, f"memory of {self.memory} bytes")
        if self.timeout is not None and not 0 < self.timeout < 1e9:
            raise BadInput(f"--timeout {self.timeout:g}: give seconds, more than 0")
        if "\0" in self.append:
            raise BadInput("--append: a kernel command line can't hold a null byte")
        self._check_disks()

    def _check_disks(self) -> None:
        seen: dict[tuple[int, int], bool] = {}
        units: tuple[Disk | ScsiDisk, ...] = (*self.disks, *self.scsi)
        for disk in units:
            disk.check()
            found = os.stat(disk.path)
            key = (found.st_dev, found.st_ino)
            readonly = disk.readonly or (isinstance(disk, ScsiDisk) and disk.cdrom)
            if not (readonly and seen.get(key, True)) and key in seen:
                raise BadInput(f"--disk {disk.path}: given twice; a disk that is written can be attached once")
            seen[key] = readonly


def parse_disk(text: str) -> Disk:
    """A Disk of PATH[,ro][,direct][,serial=TEXT][,queues=N]; a comma in PATH is written twice. Raises BadInput."""
    path, options = _path_and_options("--disk", text)
    given: dict[str, str | int | bool] = {}
    for option in options:
        key, _equals, value = option.partition("=")
        if option in ("ro", "direct"):
            given["readonly" if option == "ro" else option] = True
        elif key == "serial" and value:
            given[key] = value
        elif key == "queues" and value.isascii() and value.isdigit() and 0 < int(value[:9]) <= MAX_DISK_QUEUES:
            given[key] = int(value)
        else:
            known = f"ro, direct, serial=TEXT and queues=1..{MAX_DISK_QUEUES}"
            raise BadInput(f"--disk {text}: no option {option!r}; there are {known} (a comma in a path is written ,,)")
    return msgspec.convert({"path": path, **given}, Disk)


def parse_scsi(text: str) -> ScsiDisk:
    """A ScsiDisk of PATH[,ro][,cd][,serial=TEXT]; a comma in PATH is written twice. Raises BadInput."""
    path, options = _path_and_options("--scsi", text)
    given: dict[str, str | bool] = {}
    for option in options:
        if option in ("ro", "cd"):
            given["readonly" if option == "ro" else "cdrom"] = True
        elif option.startswith("serial=") and option != "serial=":
            given["serial"] = option.removeprefix("serial=")
        else:
            raise BadInput(f"--scsi {text}: no option {option!r}; there are ro, cd and serial=TEXT")
    return msgspec.convert({"path": path, **given}, ScsiDisk)


def _path_and_options(option: str, text: str) -> tuple[str, list[str]]:
    path, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    if not path:
        raise BadInput(f"{option} {text}: give a path first, such as {option} disk.raw,ro")
    return path, options


def parse_size(text: str, what: str = "--memory") -> int:
    """Bytes for 512M, 2G, 1.5G or 512 (MiB), rounded up to pages. Raises BadInput for what can't be."""
    size = parse_bytes(text, what)
    check_memory(size, f"{what} {text}")
    return size


def parse_bytes(text: str, what: str) -> int:
    """As parse_size, of something that need not fit into this host's memory."""
    match = _SIZE.fullmatch(text.strip())
    if match is None:
        raise BadInput(f"{what} {text}: not a size; give a number and a unit, such as 512M or 2G")
    size = int(float(match[1]) * _UNITS[match[2].lower()]) if len(match[1]) < 20 else 1 << 62
    return (size + PAGE - 1) // PAGE * PAGE


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
