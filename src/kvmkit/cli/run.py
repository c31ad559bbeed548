"""`kvmkit run`: a VM for one command, one shell, or one kernel; or one that goes on in the background."""

from __future__ import annotations

import argparse
from contextlib import AbstractContextManager, nullcontext
from typing import TYPE_CHECKING

from kvmkit.cli.parser import seconds, whole_number
from kvmkit.cli.verbs import VERBS
from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.machine import Network
    from kvmkit.manager.spec import VmSpec

SUMMARY = VERBS["run"].summary
TAKES_COMMAND = True

DESCRIPTION = """\
Boot IMAGE (debian or tiny, built on first use) in a new VM, run COMMAND in it, and end it. COMMAND's input, output and
exit status are yours. Without COMMAND: a shell on a terminal, elsewhere a short demonstration.
A file that ends in .toml or .json in IMAGE's place says all that (`kvmkit schema`); options go before it.
With --detach the VM goes on in the background: see it by `kvmkit ps`, use it by `kvmkit exec`."""

EPILOG = """\
examples:
  kvmkit run                                    a shell
  kvmkit run -- sh -c 'uname -r; exit 7'        output and exit status are the command's
  echo hello | kvmkit run -- tr a-z A-Z         so is its input
  kvmkit run --memory 1G --timeout 60 -- make   more memory, and an end after a minute
  kvmkit run --root-size 8G -- apt update       a disk for what it writes, where its memory is too small
  kvmkit run tiny -- ps                         busybox instead of Debian
  kvmkit run --cpu Haswell,-rtm -- lscpu        a CPU model; kvmkit cpu list has them all
  kvmkit run --hugepages=2M --memory 1G         RAM on huge pages (kvmkit host hugepages enable)
  kvmkit run --disk data.raw -- fdisk -l        a disk of the guest's, /dev/vda; kvmkit help disks
  kvmkit run --net user -- wget -O - http://192.0.2.1/    the network; kvmkit help networks
  kvmkit run --volume .:/work -- ls /work       a directory of the host's, in the guest
  kvmkit run --disk a.qcow2 -- lsblk            other formats, overlays, nbd://: docs/vhost-user.md
  kvmkit run --detach --name web                a VM in the background, to be kept
  kvmkit run vm.toml                            what a file says
  kvmkit run --transport pci -- ls /sys/bus/pci/devices
  kvmkit run --console                          the serial console instead: watch it boot
  kvmkit run --kernel vmlinuz --initrd my.cpio  your own kernel, its console on this terminal
  kvmkit run --firmware bios --disk system.raw  a disk with a boot loader, its console on this terminal
  kvmkit run --firmware uefi --secure-boot --disk system.raw    by UEFI; kvmkit help firmware
  kvmkit run --kernel test.elf --debug-exit     a multiboot kernel that ends by port 0xf4

A VM is removed when it ends, unless it has a name or is detached; --rm removes these too.

exit status: COMMAND's; 1 the guest or kvmkit failed; 2 bad input; 124 --timeout; 130 Ctrl-C; 143 SIGTERM;
with --debug-exit (V << 1) | 1. More: kvmkit help exit-status, kvmkit help engines, kvmkit help kernels."""


GIVEN = (
    "name accel memory cpus cpu nested hugepages root_size transport vsock policy user_data kernel firmware nvram"
    " nvram_template append timeout"
).split()
"""Options that are fields of a VmSpec as they come."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kvmkit run [IMAGE | FILE] [options] [-- COMMAND ...]"
    parser.epilog = EPILOG
    add = parser.add_argument
    add("--detach", "-d", action="store_true", help="go on in the background; print the VM's name")
    add("--rm", action="store_true", help="remove the VM when it ends")
    specification(parser)
    add("--tty", "-t", action="store_true", help="give COMMAND a terminal")
    add("--plain", action="store_true", help=argparse.SUPPRESS)  # as root, whatever the image says; `image build`
    add("--stats", metavar="FILE", help="write times, exits and memory there, as JSON")


def specification(parser: argparse.ArgumentParser) -> None:
    """The options that say what a VM is to be; those that are not given are None."""
    add = parser.add_argument
    add("image", nargs="?", metavar="IMAGE", help="the guest image (default: debian), or a file that says all")
    add("--name", metavar="NAME", help="the VM's name, by which it is kept (default: one that is free)")
    add("--accel", metavar="ENGINE", help="auto, kvm or tcg (default: auto)")
    add("--root-size", metavar="SIZE", help="the root disk (default: 16G for a VM that is kept, else it is in memory)")
    add("--memory", "-m", metavar="SIZE", help="guest RAM, such as 512M or 2G (default: 512M)")
    add("--cpus", type=whole_number, metavar="N", help="vCPUs (default: 1; more on kvm only)")
    add("--cpu", metavar="MODEL", help="CPU model, as listed by `kvmkit cpu list` (default: max)")
    nested = parser.add_mutually_exclusive_group()
    nested.add_argument("--nested", action="store_true", default=None, help="let the guest run VMs of its own")
    nested.add_argument("--no-nested", dest="nested", action="store_false", help="hide vmx and svm from it")
    text = "guest RAM on huge pages: --hugepages, =2M, =1G or =transparent"
    add("--hugepages", nargs="?", const="default", metavar="SIZE", help=text)
    add("--transport", choices=("mmio", "pci"), help="how the guest finds its devices (default: mmio)")
    add("--pmem", action="append", metavar="PATH[,ro]", help="a file as persistent memory, /dev/pmem0")
    add("--input", action="append", metavar="DEVICE", choices=("keyboard", "tablet"), help="keyboard or tablet")
    add("--volume", action="append", metavar="HOST:GUEST", help="share a directory; HOST:GUEST:ro to read only")
    text = "KIND=SOCKET[,...]: blk, fs, net, scsi, gpu or generic, served by another process"
    add("--vhost-user", action="append", metavar="DEVICE", help=text)
    text = "PATH[,ro][,snapshot][,direct][,iops=N]...: a disk image or block device"
    add("--disk", action="append", metavar="DISK", help=text)
    add("--scsi", action="append", metavar="DISK", help="PATH[,ro][,snapshot][,cd][,iops=N]: a SCSI disk or CD-ROM")
    add("--net", action="append", metavar="NET", help="user, tap=NAME, bridge=NAME, network=NAME, socket=PATH or none")
    text = "[ADDRESS:]PORT:GUEST-PORT[/udp]: a port of the host's that leads to the guest"
    add("--publish", "-p", action="append", metavar="PORTS", help=text)
    add("--policy", metavar="POLICY", help="what the guest may send: all, deny, dns or allow=ADDRESS:PORT,...")
    add("--rng", action="store_true", help="give the guest entropy from the host")
    add("--rng-limit", metavar="LIMIT", help="bps=N,iops=N: how much of it a second")
    text = "a port of virtio-console and its socket; hvc0 is a console, org.qemu.guest_agent.0 qemu-ga's"
    add("--console-port", action="append", metavar="NAME[=PATH]", help=text)
    add("--balloon", action="store_true", help="let it give memory back while it runs (kvmkit set --memory-target)")
    text = "sockets between host and guest (vsock.sock in the VM's directory); default: with kvmkit's agent"
    add("--vsock", nargs="?", const=True, type=_cid, metavar="CID", help=text)
    add("--no-vsock", dest="vsock", action="store_false", default=None, help="no such device")
    add("--user-data", metavar="FILE", help="cloud-init's user-data, for a guest that has it (debian-systemd)")
    add("--kernel", metavar="PATH", help="a bzImage, ELF vmlinux or multiboot kernel instead of the image's")
    add("--firmware", metavar="FIRMWARE", help="start a disk by its boot loader: bios, uefi, or an image's path")
    add("--secure-boot", action="store_true", help="with UEFI: start only what Microsoft's keys have signed")
    text = "with UEFI: the file of its variables, made if it is not there (default: the VM's own)"
    add("--nvram", metavar="PATH", help=text)
    add("--nvram-template", metavar="PATH", help="what that file is made of (default: what belongs to the firmware)")
    add("--initrd", action="append", metavar="PATH", help="an initramfs; may be given several times")
    add("--append", metavar="TEXT", help="more kernel parameters; with --kernel alone, all of them")
    add("--console", action="store_true", help="the guest's first serial port on this terminal; Ctrl-] x leaves")
    add("--debug-exit", action="store_true", help="writing V to port 0xf4 ends the VM with status (V << 1) | 1")
    add("--timeout", type=seconds, metavar="SECONDS", help="end the VM after that long, with status 124")


def _cid(text: str) -> int:
    if not text.isascii() or not text.isdigit() or int(text[:12]) < 3:
        raise BadInput(
            f"--vsock {text}: a guest's CID is a number from 3 to 4294967294 (before another word: --vsock=3)"
        )
    return int(text[:12])


def specified(args: argparse.Namespace) -> VmSpec:
    """The VM that options, and the file among them, describe. BadInput for what can't be."""
    from pathlib import Path

    from kvmkit.machine import parse_disk, parse_network, parse_pmem, parse_scsi, parse_vhost_user, parse_volume
    from kvmkit.manager.spec import VmSpec

    given = {name: value for name in GIVEN if (value := getattr(args, name, None)) is not None}
    for name in ("name", "kernel", "firmware", "nvram", "nvram_template"):
        if given.get(name) == "":
            raise BadInput(f"--{name.replace('_', '-')}: is empty")
    given |= {name: True for name in ("console", "debug_exit", "rng", "balloon", "secure_boot") if getattr(args, name)}
    if args.disk:
        given["disks"] = tuple(parse_disk(text) for text in args.disk)
    if args.console_port:
        from kvmkit.machine.spec import parse_console_port

        given["console_ports"] = tuple(parse_console_port(text) for text in args.console_port)
    if args.scsi:
        given["scsi"] = tuple(parse_scsi(text) for text in args.scsi)
    if args.net or args.publish:
        given["networks"] = published(tuple(parse_network(text) for text in args.net or ["user"]), args.publish or [])
    if args.vhost_user:
        given["vhost_user"] = tuple(parse_vhost_user(text) for text in args.vhost_user)
    if args.pmem:
        given["pmem"] = tuple(parse_pmem(text) for text in args.pmem)
    if args.input:
        given["input"] = tuple(args.input)
    if args.volume:
        given["volumes"] = tuple(parse_volume(text) for text in args.volume)
    if args.rng_limit is not None:
        from kvmkit.machine.limits import parse_limits

        given |= {"rng": True, "rng_limits": parse_limits(f"--rng-limit {args.rng_limit}", args.rng_limit)}
    if args.initrd:
        given["initrd"] = tuple(args.initrd)
    if args.command:
        given["command"] = tuple(args.command)
    if args.image is not None and args.image.endswith((".toml", ".json")):
        from kvmkit.manager.specfile import read_spec

        base, directory = read_spec(args.image), Path(args.image).absolute().parent
    else:
        base, directory = VmSpec(image=args.image or ""), Path.cwd()
    import msgspec

    spec: VmSpec = msgspec.structs.replace(base.absolute(directory), **VmSpec(**given).absolute().changed(given))
    spec = spec.resolved()
    spec.check()
    return spec


def published(networks: tuple[Network, ...], ports: list[str]) -> tuple[Network, ...]:
    """The cards, without those that are none, and with `ports` published by the one that can. BadInput."""
    import msgspec

    found = [each for each in networks if each.kind != "none"]
    if ports:
        user = next((each for each in found if each.kind == "user"), None)
        if user is None:
            raise BadInput(f"--publish {ports[0]}: goes with --net user; elsewhere the guest has an address of its own")
        with_ports = msgspec.structs.replace(user, publish=tuple(ports))
        with_ports.check()
        found[found.index(user)] = with_ports
    return tuple(found)


def run(args: argparse.Namespace) -> int:
    from kvmkit.cli import stats_file

    spec = specified(args)
    stats_file.check(args.stats)
    if args.detach:
        return _detach(args, spec)
    return run_spec(
        spec,
        tty=args.tty,
        stats=args.stats,
        temporary=args.rm or not spec.name,
        started_ns=args.started_ns or None,
        plain=args.plain,
    )


def _detach(args: argparse.Namespace, spec: VmSpec) -> int:
    from kvmkit.manager import create
    from kvmkit.manager.spawn import spawn

    for option, given in (("--tty", args.tty), ("--stats", args.stats)):
        if given:
            raise BadInput(f"{option} goes with a VM in the foreground, not with --detach")
    _tell_of_network(spec)
    spec.machine()  # an image that is not there is built now, where its progress is seen
    with create.made(spec, temporary=args.rm) as home:
        try:
            spawn(home)
        except BaseException:
            home.remove()
            raise
        print(home.name)
    return 0


def _tell_of_network(spec: VmSpec) -> None:
    from kvmkit.cli.main import say
    from kvmkit.manager import networking

    if spec.networks is None and not spec.alone and (text := networking.missing()):
        say(f"note: {text}")


def run_spec(
    spec: VmSpec,
    *,
    tty: bool = False,
    stats: str | None = None,
    temporary: bool = True,
    started_ns: int | None = None,
    reboot: bool = False,
    plain: bool = False,
) -> int:
    """Run a VM in the foreground; returns the exit status. `reboot`: it may start again when its guest resets."""
    import msgspec

    from kvmkit.cli import session
    from kvmkit.manager import create, imagesettings
    from kvmkit.manager.own_files import with_own_files

    _tell_of_network(spec)
    if spec.console and tty:
        raise BadInput("--console shows the serial port, where no command of kvmkit's runs: leave one of them away")
    spec = spec.identified()
    # A reset ends `run`: what it was called for is gone. Not so where a disk was started, which installers reset.
    machine = msgspec.structs.replace(spec, reboot=spec.reboot and (reboot or spec.boots_disk)).machine(
        attached=not spec.with_agent and not spec.serial
    )
    with _pidfile(spec.pidfile), create.made(spec, temporary=temporary) as home:
        machine = with_own_files(machine, spec, home, temporary=temporary)
        return session.run(
            home,
            machine,
            command=list(spec.command) or None,
            settings=imagesettings.NONE if plain else imagesettings.of(spec.image),
            with_agent=spec.with_agent,
            tty=tty,
            stats=stats,
            started_ns=started_ns,
            serial=spec.serial,
        )


def _pidfile(path: str) -> AbstractContextManager[object]:
    if not path:
        return nullcontext()
    from kvmkit.manager.pidfile import PidFile

    return PidFile(path)
