"""What a VM is to be, as its user says it: by flags, a TOML or JSON file, or from Python. Kept as vm.json."""

from __future__ import annotations

import os
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, Literal

import msgspec
from msgspec import Meta

from kvmkit import firmware
from kvmkit.errors import BadInput
from kvmkit.machine.limits import Limits
from kvmkit.machine.network import Network
from kvmkit.machine.pmem import Pmem
from kvmkit.machine.spec import ConsolePort, Disk, ScsiDisk, Vsock
from kvmkit.machine.vhost_user import VhostUser
from kvmkit.machine.volume import Volume

if TYPE_CHECKING:
    from kvmkit.guest.images import GuestImage
    from kvmkit.guest.progress import Progress
    from kvmkit.machine import MachineSpec

BARE_KERNEL_APPEND = "console=ttyS0 panic=-1"


class VmSpec(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A VM. All fields may be left away: it is then the image `debian` with 512 MiB and one vCPU."""

    name: Annotated[str, Meta(description="the VM's name; none: one that is free")] = ""
    image: Annotated[str, Meta(description="the guest image; none, and no kernel: debian")] = ""
    root_size: Annotated[
        str | int,
        Meta(description='the root disk, such as "20G"; none: 16G for a VM that is kept, else changes are in memory'),
    ] = ""
    kernel: Annotated[str, Meta(description="a bzImage, ELF vmlinux or multiboot kernel instead of the image's")] = ""
    initrd: Annotated[tuple[str, ...], Meta(description="initramfs files, with `kernel`")] = ()
    firmware: Annotated[
        str,
        Meta(description='what starts a disk by its boot loader: "bios" (SeaBIOS), "uefi" (OVMF), or an image\'s path'),
    ] = ""
    nvram: Annotated[str, Meta(description="the file of UEFI's variables; none: one of the VM's own")] = ""
    nvram_template: Annotated[str, Meta(description="what that is made of; none: what belongs to the firmware")] = ""
    secure_boot: Annotated[bool, Meta(description="with UEFI: start only what Microsoft's keys have signed")] = False
    boot_order: Annotated[
        tuple[int, ...], Meta(description="disks that firmware tries first: places in `disks`, then in `scsi`")
    ] = ()
    append: Annotated[str | None, Meta(description="more kernel parameters; with `kernel` alone, all of them")] = None
    accel: Annotated[Literal["auto", "kvm", "tcg"], Meta(description="the engine")] = "auto"
    cpu: Annotated[str, Meta(description="CPU model, as `kvmkit cpu list` names them")] = "max"
    cpus: Annotated[int, Meta(description="vCPUs", ge=1, le=4096)] = 1
    nested: Annotated[bool | None, Meta(description="whether the guest may run VMs; none: as the model has it")] = None
    transport: Annotated[Literal["mmio", "pci"], Meta(description="how the guest finds its devices")] = "mmio"
    memory: Annotated[str | int, Meta(description='guest RAM, such as "512M" or "2G"; a number is MiB')] = "512M"
    hugepages: Annotated[
        Literal["", "default", "2M", "1G", "transparent"], Meta(description="guest RAM on huge pages of this size")
    ] = ""
    memory_path: Annotated[str, Meta(description="guest RAM in a file here, such as /dev/hugepages")] = ""
    preallocate: Annotated[bool, Meta(description="have all of guest RAM before the guest starts")] = False
    disks: Annotated[tuple[Disk, ...], Meta(description="raw images and block devices, as virtio-blk")] = ()
    scsi: Annotated[tuple[ScsiDisk, ...], Meta(description="disks and CD-ROMs, as virtio-scsi")] = ()
    networks: Annotated[
        tuple[Network, ...] | None, Meta(description="network cards; none said: one by passt, where that is installed")
    ] = None
    policy: Annotated[str, Meta(description="what the guest may send: all, deny, dns or allow=ADDRESS:PORT,...")] = ""
    mac: Annotated[str, Meta(description="the first card's address; none: one is chosen when the VM is made")] = ""
    pmem: Annotated[tuple[Pmem, ...], Meta(description="files as the guest's persistent memory")] = ()
    input: Annotated[tuple[Literal["keyboard", "tablet"], ...], Meta(description="keyboards and tablets")] = ()
    vhost_user: Annotated[tuple[VhostUser, ...], Meta(description="devices that other processes serve")] = ()
    volumes: Annotated[tuple[Volume, ...], Meta(description="directories of the host's, shared")] = ()
    rng: Annotated[bool, Meta(description="entropy from the host")] = False
    rng_limits: Annotated[Limits, Meta(description="rate limits of `rng`: bps, iops and their bursts")] = Limits()
    console_ports: Annotated[
        tuple[ConsolePort, ...], Meta(description="ports of virtio-console; hvc0 is a console")
    ] = ()
    balloon: Annotated[bool, Meta(description="memory that the guest can give back (kvmkit set)")] = False
    vsock: Annotated[
        bool | int | None,
        Meta(description="sockets between host and guest, or the guest's CID; none: where kvmkit's agent is in it"),
    ] = None
    user_data: Annotated[str, Meta(description="a file with cloud-init's user-data, given to the guest by a seed")] = ""
    command: Annotated[tuple[str, ...], Meta(description="run this in the guest, and end with it")] = ()
    console: Annotated[bool, Meta(description="the guest's serial console is its user's; no agent in it")] = False
    serial: Annotated[
        str, Meta(description='where the console leads: "null", "pty", "file:PATH", "unix:PATH"; none: the terminal')
    ] = ""
    pidfile: Annotated[str, Meta(description="a file with the process number, while the VM runs")] = ""
    debug_exit: Annotated[bool, Meta(description="a write to port 0xf4 ends the VM")] = False
    reboot: Annotated[bool, Meta(description="a guest that resets starts again; without it, that ends the VM")] = True
    timeout: Annotated[float | None, Meta(description="end the VM after so many seconds")] = None

    @property
    def alone(self) -> bool:
        """A kernel of the user's own, or one on a disk, of which nothing is known."""
        return self.boots_disk or (bool(self.kernel) and not self.image and not self.command)

    @property
    def boots_disk(self) -> bool:
        """Whether firmware starts what is on a disk. UEFI starts kernels, too."""
        if not self.firmware or self.kernel or self.command:
            return bool(self.firmware) and not firmware.is_uefi(self.firmware)
        return not firmware.is_uefi(self.firmware) or is_disk(self.image) or bool(self.disks or self.scsi)

    @property
    def with_agent(self) -> bool:
        """Whether kvmkit's agent is to be in the guest."""
        return not self.alone and not self.console

    @property
    def vsock_device(self) -> Vsock | None:
        """The device; its socket gets its place when the VM has one."""
        if self.vsock is None:
            return Vsock(optional=True) if self.with_agent or is_disk(self.image) else None
        return Vsock(cid=self.vsock if self.vsock is not True else 0) if self.vsock is not False else None

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be; nothing is built or started for it."""
        self._checked()
        if is_disk(self.image):
            from kvmkit.manager import rootdisk

            rootdisk.check_whole(self.image, self.root_bytes())

    def _checked(self) -> int:
        """`check`; returns the size of guest RAM in bytes."""
        from kvmkit.accel import cpuid
        from kvmkit.machine import parse_size
        from kvmkit.manager import names, networking
        from kvmkit.memory import backing

        if self.name:
            names.check(self.name)
        if self.console and self.command:
            raise BadInput("--console shows the serial port, where no command of kvmkit's runs: leave one of them away")
        if self.serial:
            from kvmkit.manager import outlet

            outlet.check(self.serial)
            if self.with_agent:
                raise BadInput("`serial` says where the console leads: it goes with --console, --kernel or --firmware")
        memory = parse_size(str(self.memory))
        if self.root_bytes() and not self.has_root_disk():
            from kvmkit.manager import rootdisk

            raise BadInput(f"--root-size: {rootdisk.NONE}")
        cpuid.parse(self.cpu)
        if self.hugepages:
            backing.check_choice(self.hugepages)
        if self.balloon and self.hugepages not in ("", "transparent"):
            raise BadInput("--balloon: memory on reserved huge pages can't be given back: leave one of them away")
        self.rng_limits.check_limits("--rng-limit")
        for disk in self.disks:
            disk.check()
        for network in self.networks or ():
            network.check()
        networking.check(self.networks, self.policy, self.mac)
        for pmem in self.pmem:
            pmem.check()
        for device in self.vhost_user:
            device.check()
        for volume in self.volumes:
            volume.check()
        if self.firmware:
            self._check_firmware()
        elif self.nvram or self.nvram_template or self.secure_boot:
            raise BadInput("--nvram and --secure-boot go with UEFI: --firmware uefi")
        if (vsock := self.vsock_device) is not None:
            vsock.check()
        if self.user_data:
            from kvmkit.manager import seed

            seed.user_data(Path(self.user_data), "")
        if self.initrd and not self.kernel:
            raise BadInput("--initrd goes with --kernel: an image has its own")
        if self.image and not self.alone:
            check_image(self.image)
        return memory

    def identified(self) -> VmSpec:
        """The same with what stays with it: an address for its first card, and the image that KVMKIT_IMAGE names."""
        from kvmkit.guest import images
        from kvmkit.machine.networks import default_mac

        image = self.image
        if not image and not self.alone and not self.kernel and images.default() != images.DEFAULT:
            image = images.default()
        return msgspec.structs.replace(self, mac=self.mac or default_mac(), image=image)

    def root_bytes(self) -> int:
        """The size of the layer above the image's root disk; 0: as it comes. BadInput: it can't be one."""
        if self.root_size == "":
            return 0
        from kvmkit.manager import rootdisk

        return rootdisk.size_of(str(self.root_size))

    def has_root_disk(self) -> bool:
        """Whether the guest's root can be a disk of the VM's own: a layer above its image's, or a copy of it."""
        from kvmkit.guest import images

        if self.alone or (self.kernel and not self.image):
            return is_disk(self.image)
        return (self.image or images.default()) != "tiny"

    def _check_firmware(self) -> None:
        if firmware.is_uefi(self.firmware):
            from kvmkit.boot import uefi

            uefi.read(self.firmware, secure_boot=self.secure_boot, template=self.nvram_template)
            return
        given = {
            "--kernel": self.kernel,
            "IMAGE": self.image if not is_disk(self.image) else "",
            "COMMAND": self.command,
            "--initrd": self.initrd,
            "--append": self.append,
        }
        for option, value in given.items():
            if value:
                raise BadInput(f"--firmware starts what is on a disk: leave {option} away")
        if not (self.disks or self.scsi or self.image):
            raise BadInput("--firmware starts what is on a disk: name one with --disk")
        if self.firmware != firmware.BIOS:
            from kvmkit.boot import seabios

            seabios.read(self.firmware)

    def absolute(self, base: Path | None = None) -> VmSpec:
        """The same with whole paths, which were relative to `base` (default: the current directory)."""
        base = base or Path.cwd()
        return msgspec.structs.replace(
            self,
            kernel=os.path.join(base, self.kernel) if self.kernel else "",
            serial=_absolute_serial(self.serial, base),
            user_data=os.path.join(base, self.user_data) if self.user_data else "",
            pidfile=os.path.join(base, self.pidfile) if self.pidfile else "",
            firmware=self.firmware if self.firmware in ("", *firmware.NAMES) else os.path.join(base, self.firmware),
            nvram=os.path.join(base, self.nvram) if self.nvram else "",
            nvram_template=os.path.join(base, self.nvram_template) if self.nvram_template else "",
            memory_path=os.path.join(base, self.memory_path) if self.memory_path else "",
            initrd=tuple(os.path.join(base, path) for path in self.initrd),
            disks=tuple(_whole(disk, base) for disk in self.disks),
            networks=None if self.networks is None else tuple(_absolute(each, base) for each in self.networks),
            scsi=tuple(msgspec.structs.replace(disk, path=os.path.join(base, disk.path)) for disk in self.scsi),
            pmem=tuple(msgspec.structs.replace(one, path=os.path.join(base, one.path)) for one in self.pmem),
            vhost_user=tuple(
                msgspec.structs.replace(one, socket=os.path.join(base, one.socket)) for one in self.vhost_user
            ),
            volumes=tuple(
                msgspec.structs.replace(one, host=os.path.abspath(os.path.join(base, one.host))) for one in self.volumes
            ),
            console_ports=tuple(
                msgspec.structs.replace(one, path=os.path.join(base, one.path) if one.path else "")
                for one in self.console_ports
            ),
        )

    def resolved(self) -> VmSpec:
        """The same, which for an image that is a whole disk says that firmware starts it."""
        if self.firmware or not is_disk(self.image):
            return self
        return msgspec.structs.replace(self, firmware="bios")

    def changed(self, names: Iterable[str]) -> dict[str, Any]:
        """The fields of those names."""
        return {name: getattr(self, name) for name in names}

    def machine(
        self, progress: Progress | None = None, *, attached: bool = False, directory: Path | None = None
    ) -> MachineSpec:
        """The machine, with the image built if it is not there. `attached`: the console is on this terminal.

        `directory`: the VM's own, which has the image it was begun with.
        """
        from kvmkit.accel.choose import choose
        from kvmkit.machine import MachineSpec
        from kvmkit.manager import networking, rootdisk
        from kvmkit.memory import backing

        memory = self._checked()
        choose(self.accel)
        backing.check(memory, self.hugepages, self.memory_path)
        kernel, initrd, append, disks = self.kernel, self.initrd, self.append or "", self.disks
        networks = networking.settled(self.networks, self.mac, alone=self.alone)
        if self.alone:
            if kernel and self.append is None and not is_multiboot(kernel):
                append = BARE_KERNEL_APPEND
            if self.image:
                disks = (*rootdisk.whole(self.image, directory), *disks)
        else:
            parameters = ["console=ttyS0", "panic=-1"]
            if not (kernel and initrd and not self.image):
                image = directory and rootdisk.pinned(directory, progress)
                image = image or find_image(self.image, progress)
                kernel = kernel or str(image.kernel)
                initrd = initrd or tuple(str(path) for path in image.initramfs)
                disks += rootdisk.base(image)
                parameters.append(image.append)
            parameters += ["kvmkit.vsock"] if self.with_agent and self.vsock_device else []
            parameters += ["kvmkit.channel=console", "loglevel=7"] if self.console else []
            parameters += networking.parameters(networks)
            parameters += [text for n, volume in enumerate(self.volumes) if (text := volume.parameter(n))]
            append = " ".join([*parameters, append]).strip()
        ports = self.console_ports
        if is_disk(self.image):  # qemu-ga's is there unasked
            from kvmkit.guest.qga import PORT

            if not any(port.name == PORT for port in ports):
                ports = (*ports, ConsolePort(name=PORT))
        spec = MachineSpec(
            kernel=kernel,
            initrd=initrd,
            append=append,
            firmware=self.firmware,
            nvram=self.nvram,
            nvram_template=self.nvram_template,
            secure_boot=self.secure_boot,
            boot_order=self.boot_order,
            accel=self.accel,
            cpu=self.cpu,
            cpus=self.cpus,
            memory=memory,
            hugepages=self.hugepages,
            memory_path=self.memory_path,
            preallocate=self.preallocate,
            nested=self.nested,
            transport=self.transport,
            disks=disks,
            scsi=self.scsi,
            networks=networks,
            policy=self.policy,
            pmem=self.pmem,
            input=self.input,
            vhost_user=self.vhost_user,
            volumes=self.volumes,
            rng=self.rng,
            rng_limits=self.rng_limits,
            vsock=self.vsock_device,
            balloon=self.balloon,
            console_ports=ports,
            console="attach" if attached else "log",
            debug_exit=self.debug_exit,
            reboot=self.reboot,
            timeout=self.timeout,
        )
        spec.check()
        return spec


def _whole(disk: Disk, base: Path) -> Disk:
    from kvmkit.block.formats import whole_path

    return msgspec.structs.replace(
        disk,
        path=whole_path(str(base), disk.path),
        backing=os.path.join(base, disk.backing) if disk.backing else "",
        key=os.path.join(base, disk.key) if disk.key else "",
    )


def _absolute(network: Network, base: Path) -> Network:
    if network.kind != "socket":
        return network
    return msgspec.structs.replace(network, name=os.path.join(base, network.name))


def _absolute_serial(text: str, base: Path) -> str:
    kind, colon, path = text.partition(":")
    return f"{kind}:{os.path.join(base, path)}" if colon else text


def is_multiboot(kernel: str) -> bool:
    """Its command line is its own business: nothing is put there that was not asked for."""
    from kvmkit.boot import multiboot
    from kvmkit.boot.files import Source

    try:
        with Source(Path(kernel), "kernel") as source:
            return multiboot.find(source.head) is not None
    except BadInput:
        return False  # said in full when it is loaded


def is_disk(name: str) -> bool:
    """Whether an image is a whole disk, which starts by its own boot loader."""
    if not name:
        return False
    from kvmkit.guest import library

    return name not in library.BUILT_IN and library.exists(name) and (library.root() / name / library.DISK).exists()


def check_image(name: str) -> None:
    from kvmkit.guest import library

    if not library.exists(name):
        raise library.unknown(name)


def find_image(name: str, progress: Progress | None = None) -> GuestImage:
    """The guest image; its first build shows its progress. An empty name is the default's."""
    from kvmkit.guest import images
    from kvmkit.guest.progress import Shown

    name = name or images.default()
    check_image(name)
    if progress is not None:
        return images.ensure(name, progress)
    with Shown() as shown:
        return images.ensure(name, shown)


def encode(spec: VmSpec) -> bytes:
    return msgspec.json.format(msgspec.json.encode(spec)) + b"\n"


def decode(data: bytes, where: str) -> VmSpec:
    """BadInput, which names the field, for what is none."""
    try:
        return msgspec.json.decode(data, type=VmSpec)
    except msgspec.DecodeError as error:
        raise BadInput(f"{where}: {error}") from None
