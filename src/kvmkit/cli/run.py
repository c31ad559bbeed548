"""`kvmkit run`: a VM for one command, one shell, or one kernel."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING

from kvmkit.cli.parser import seconds, whole_number
from kvmkit.cli.verbs import VERBS
from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.guest.images import GuestImage
    from kvmkit.machine import MachineSpec

SUMMARY = VERBS["run"].summary
TAKES_COMMAND = True
DEFAULT_IMAGE = "debian"
BARE_KERNEL_APPEND = "console=ttyS0 panic=-1"

DESCRIPTION = """\
Boot IMAGE (debian, built on first use) in a new VM, run COMMAND in it, and end it. COMMAND's input, output and
exit status are yours. Without COMMAND: a shell on a terminal, elsewhere a short demonstration."""

EPILOG = """\
examples:
  kvmkit run                                    a shell
  kvmkit run -- sh -c 'uname -r; exit 7'        output and exit status are the command's
  echo hello | kvmkit run -- tr a-z A-Z         so is its input
  kvmkit run --memory 1G --timeout 60 -- make   more memory, and an end after a minute
  kvmkit run --cpu Haswell,-rtm -- lscpu        a CPU model; kvmkit cpu list has them all
  kvmkit run --hugepages=2M --memory 1G         RAM on huge pages (kvmkit host hugepages enable)
  kvmkit run --console                          the serial console instead: watch it boot
  kvmkit run --kernel vmlinuz --initrd my.cpio  your own kernel, its console on this terminal
  kvmkit run --kernel test.elf --debug-exit     a multiboot kernel that ends by port 0xf4

exit status: COMMAND's; 1 the guest or kvmkit failed; 2 bad input; 124 --timeout; 130 Ctrl-C; 143 SIGTERM;
with --debug-exit (V << 1) | 1. More: kvmkit help exit-status, kvmkit help engines, kvmkit help kernels."""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kvmkit run [IMAGE] [options] [-- COMMAND ...]"
    parser.epilog = EPILOG
    add = parser.add_argument
    add("image", nargs="?", metavar="IMAGE", help=f"the guest image (default: {DEFAULT_IMAGE})")
    add("--accel", default="auto", metavar="ENGINE", help="auto, kvm or tcg (default: auto)")
    add("--memory", "-m", default="512M", metavar="SIZE", help="guest RAM, such as 512M or 2G (default: 512M)")
    add("--cpus", type=whole_number, default=1, metavar="N", help="vCPUs (default: 1; more on kvm only)")
    add("--cpu", default="max", metavar="MODEL", help="CPU model, as listed by `kvmkit cpu list` (default: max)")
    nested = parser.add_mutually_exclusive_group()
    nested.add_argument("--nested", action="store_true", default=None, help="let the guest run VMs of its own")
    nested.add_argument("--no-nested", dest="nested", action="store_false", help="hide vmx and svm from it")
    add(
        "--hugepages",
        nargs="?",
        const="default",
        default="",
        metavar="SIZE",
        help="guest RAM on huge pages: --hugepages, =2M, =1G or =transparent",
    )
    add("--tty", "-t", action="store_true", help="give COMMAND a terminal")
    add("--kernel", metavar="PATH", help="a bzImage, ELF vmlinux or multiboot kernel instead of the image's")
    add("--initrd", action="append", default=[], metavar="PATH", help="an initramfs; may be given several times")
    add("--append", metavar="TEXT", help="more kernel parameters; with --kernel alone, all of them")
    add("--console", action="store_true", help="the guest's first serial port on this terminal; Ctrl-] x leaves")
    add("--debug-exit", action="store_true", help="writing V to port 0xf4 ends the VM with status (V << 1) | 1")
    add("--timeout", type=seconds, metavar="SECONDS", help="end the VM after that long, with status 124")
    add("--stats", metavar="FILE", help="write times, exits and memory there, as JSON")


def run(args: argparse.Namespace) -> int:
    from kvmkit.cli import session, stats_file

    spec, with_agent = _specify(args)
    stats_file.check(args.stats)
    return session.run(
        spec,
        command=args.command,
        with_agent=with_agent,
        tty=args.tty,
        stats=args.stats,
        started_ns=args.started_ns or None,
    )


def _specify(args: argparse.Namespace) -> tuple[MachineSpec, bool]:
    """The machine to be, and whether its guest has our agent. BadInput for what can't be, before an image is built."""
    from kvmkit.accel import cpuid
    from kvmkit.accel.choose import choose
    from kvmkit.machine import MachineSpec, parse_size

    if args.console and (args.command or args.tty):
        raise BadInput("--console shows the serial port, where no command of kvmkit's runs: leave one of them away")
    memory = parse_size(args.memory)
    cpuid.parse(args.cpu)
    choose(args.accel)
    memory_path, preallocate = getattr(args, "memory_path", ""), getattr(args, "preallocate", False)
    if args.hugepages or memory_path:
        from kvmkit.memory import backing

        backing.check(memory, args.hugepages, memory_path)
    # A kernel of the user's own runs alone, unless an image or a command to run in it is given too.
    alone = args.kernel is not None and args.image is None and not args.command
    if args.initrd and args.kernel is None:
        raise BadInput("--initrd goes with --kernel: an image has its own")
    kernel, initrd, append = args.kernel, list(args.initrd), args.append or ""
    if alone:
        if args.append is None and not _is_multiboot(kernel):
            append = BARE_KERNEL_APPEND
    else:
        parameters = ["console=ttyS0", "panic=-1"]
        if not (kernel and initrd and args.image is None):
            image = _image(args.image or DEFAULT_IMAGE)
            kernel = kernel or str(image.kernel)
            initrd = initrd or [str(image.initrd)]
            parameters.append(image.append)
        parameters += ["kvmkit.channel=console", "loglevel=7"] if args.console else []
        append = " ".join([*parameters, append]).strip()
    spec = MachineSpec(
        kernel=kernel,
        initrd=tuple(initrd),
        append=append,
        accel=args.accel,
        cpu=args.cpu,
        cpus=args.cpus,
        memory=memory,
        console="attach" if args.console or alone else "log",
        debug_exit=args.debug_exit,
        timeout=args.timeout,
        hugepages=args.hugepages,
        memory_path=memory_path,
        preallocate=preallocate,
        nested=args.nested,
    )
    spec.check()
    return spec, not alone and not args.console


def _is_multiboot(kernel: str) -> bool:
    """Its command line is its own business: nothing is put there that was not asked for."""
    from kvmkit.boot import multiboot

    try:
        with open(kernel, "rb") as file:
            return multiboot.find(file.read(multiboot.SEARCH)) is not None
    except OSError:
        return False  # said in full when it is loaded


def _image(name: str) -> GuestImage:
    """The guest image; its first build shows its progress."""
    from kvmkit.guest import images
    from kvmkit.guest.progress import Shown

    if name not in images.NAMES:
        known = ", ".join(images.NAMES)
        raise BadInput(f"no guest image {name!r}, known: {known}; a command goes after --: kvmkit run -- {name}")
    with Shown() as progress:
        return images.ensure(name, progress)
