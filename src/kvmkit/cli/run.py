"""`kvmkit run`: a VM for one command, one shell, or one kernel."""

from __future__ import annotations

import argparse
import os
import signal
import sys
from types import FrameType
from typing import TYPE_CHECKING, NoReturn

from kvmkit.errors import BadInput, GuestFault, KvmkitError

if TYPE_CHECKING:
    from kvmkit.guest.images import GuestImage
    from kvmkit.machine import End, Machine, MachineSpec

SUMMARY = "run a command, or a shell, in a VM"
DEFAULT_IMAGE = "debian"
DEMONSTRATION = ["sh", "-c", '. /etc/os-release; echo "$PRETTY_NAME, kernel $(uname -r), in a VM of kvmkit"; uptime']
SHELL = ["/bin/sh", "-l"]
TIMED_OUT = 124
HELLO_SECONDS = 300.0
"""A guest that has not reached its agent by then hangs: the slowest boot seen took a tenth of it."""
ESCAPE = b"\x1d"  # Ctrl-]

EPILOG = """\
examples:
  kvmkit run                                    a shell (without a terminal: a short demonstration)
  kvmkit run -- sh -c 'uname -r; exit 7'        output and exit status are the command's
  kvmkit run --memory 1G --cpus 2 -- make -j2   two vCPUs need --accel kvm
  kvmkit run --kernel vmlinuz --initrd my.cpio  your own kernel, its console on this terminal
  kvmkit run --kernel test.elf --debug-exit     a multiboot kernel that ends by port 0xf4

exit status: the command's own; 2 bad input, found before anything starts; 1 the guest or kvmkit failed;
124 --timeout; 130 Ctrl-C; 143 SIGTERM; with --debug-exit, (value << 1) | 1.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kvmkit run [IMAGE] [options] [-- COMMAND ...]"
    parser.epilog = EPILOG
    add = parser.add_argument
    add("image", nargs="?", metavar="IMAGE", help=f"guest image (default: {DEFAULT_IMAGE}, built on first use)")
    add("--accel", default="auto", metavar="ENGINE", help="auto, kvm or tcg (default: auto)")
    add("--memory", "-m", default="512M", metavar="SIZE", help="guest RAM, such as 512M or 2G (default: 512M)")
    add("--cpus", default="1", metavar="N", help="vCPUs (default: 1; more on kvm only)")
    add("--cpu", metavar="MODEL", help="CPU model with features, such as host or x86-64-v2,+aes (default: max)")
    add("--kernel", metavar="PATH", help="a bzImage, vmlinux or multiboot kernel instead of the image's")
    add("--initrd", action="append", default=[], metavar="PATH", help="an initramfs; may be given several times")
    add("--append", default="", metavar="TEXT", help="more kernel parameters")
    add("--console", action="store_true", help="the guest's serial console on this terminal (Ctrl-] leaves)")
    add("--debug-exit", action="store_true", help="a write of v to port 0xf4 ends the VM with status (v << 1) | 1")
    add("--timeout", metavar="SECONDS", help="end the VM after this long, with exit status 124")
    add("--stats", metavar="FILE", help="write times, exits and memory as JSON")


def run(args: argparse.Namespace) -> int:
    spec, agent = _specify(args)
    if args.stats is not None:
        _check_writable(args.stats)
    from kvmkit.machine import Machine

    signal.signal(signal.SIGTERM, _terminate)
    keys, typed = os.pipe()
    machine = Machine(spec, console_in=keys, warn=_warn, started_ns=args.started_ns or None)
    try:
        if agent and not args.console:
            return _command(machine, args.command)
        return _console(machine, typed)
    finally:
        machine.close()
        os.close(keys)
        os.close(typed)
        if args.stats is not None:
            with open(args.stats, "wb") as file:
                file.write(machine.stats.json())


def _terminate(number: int, frame: FrameType | None) -> NoReturn:
    raise SystemExit(128 + number)


def _warn(text: str) -> None:
    print(f"kvmkit: {text}", file=sys.stderr)


def _specify(args: argparse.Namespace) -> tuple[MachineSpec, bool]:
    """The machine to be, and whether its guest has our agent. BadInput for what can't be."""
    from kvmkit.accel.choose import choose
    from kvmkit.machine import MachineSpec, parse_size

    if args.command == []:
        raise BadInput("nothing stands behind --; give a command, or leave -- away")
    if args.console and args.command:
        raise BadInput("--console shows the serial console, where no command of ours runs; leave one of them away")
    memory = parse_size(args.memory)
    cpus = _number(args.cpus, "--cpus")
    timeout = None if args.timeout is None else _seconds(args.timeout)
    choose(args.accel)  # an unknown engine, or none: before an image is built for it
    # A kernel of the user's own runs alone unless an image, or a command to run in one, is asked for.
    with_image = args.kernel is None or args.image is not None or args.command is not None
    parameters = ["console=ttyS0"]
    initrd = list(args.initrd)
    kernel = args.kernel
    if with_image:
        image = _image(args.image or DEFAULT_IMAGE)
        kernel = kernel or str(image.kernel)
        initrd = initrd or [str(image.initrd)]
        parameters += [image.append, "panic=-1", f"kvmkit.channel={'console' if args.console else 'ttyS1'}"]
        if args.console:
            parameters.append("loglevel=6")
    spec = MachineSpec(
        kernel=str(kernel),
        initrd=tuple(initrd),
        append=" ".join([*parameters, args.append]).strip() if with_image else args.append,
        accel=args.accel,
        cpu=args.cpu or "max",
        cpus=cpus,
        memory=memory,
        console="attach" if args.console or not with_image else "log",
        debug_exit=args.debug_exit,
        timeout=timeout,
    )
    spec.check()
    return spec, with_image


def _number(text: str, option: str) -> int:
    try:
        return int(text)
    except ValueError:
        raise BadInput(f"{option} {text}: not a number") from None


def _seconds(text: str) -> float:
    try:
        return float(text)
    except ValueError:
        raise BadInput(f"--timeout {text}: not a number of seconds") from None


def _check_writable(path: str) -> None:
    try:
        with open(path, "ab"):
            pass
    except OSError as error:
        raise BadInput(f"--stats {path}: {error.strerror}") from None


def _image(name: str) -> GuestImage:
    """The guest image; its first build shows its progress."""
    from kvmkit.guest import images
    from kvmkit.guest.progress import Shown

    with Shown() as progress:
        return images.ensure(name, progress)


def _command(machine: Machine, command: list[str] | None) -> int:
    """Run the user's command by the agent; its streams are ours."""
    from kvmkit.guest.client import AgentClient, AgentGone, Woken

    interactive = command is None and os.isatty(0) and os.isatty(1)
    argv = command or (SHELL if interactive else DEMONSTRATION)
    client = AgentClient(machine.agent_fd, wake=machine.ended_fd)
    try:
        machine.start()
        client.wait_hello(HELLO_SECONDS)
        machine.stats.mark("user_space")
        status = client.run(argv, tty=interactive, stdin=0 if command or interactive else None)
        machine.stats.mark("command_end")
        return status
    except (Woken, AgentGone) as gone:
        end = machine.wait(timeout=5)
        if end is None:
            raise _hung(machine, str(gone)) from None
        return _status(machine, end)


def _console(machine: Machine, typed: int) -> int:
    """The serial console on this terminal, until the machine ends or the user leaves."""
    from kvmkit import terminal

    attended = os.isatty(0) and os.isatty(1)
    if attended:
        _warn("the guest's console; Ctrl-] ends it")
    with terminal.raw(0 if attended else -1):
        machine.start()
        _pass_keys(machine, typed, ESCAPE if attended else b"")
    end = machine.wait()
    assert end is not None
    return _status(machine, end)


def _pass_keys(machine: Machine, typed: int, escape: bytes) -> None:
    """Carry standard input to the console until the machine ends; the escape key stops it."""
    import select

    poll = select.poll()
    poll.register(machine.ended_fd, select.POLLIN)
    poll.register(0, select.POLLIN)
    os.set_blocking(typed, False)
    while True:
        ready = dict(poll.poll())
        if machine.ended_fd in ready:
            return
        data = os.read(0, 1024)
        if escape and escape in data:
            machine.stop("left by the escape key")
            return
        if not data:
            poll.unregister(0)
        else:
            try:
                os.write(typed, data)
            except BlockingIOError:
                pass  # the guest takes nothing: what is typed is lost, as on a real line


def _hung(machine: Machine, why: str) -> KvmkitError:
    return GuestFault(f"{why}; see what it said, or try --console", _last_words(machine))


def _last_words(machine: Machine) -> str:
    text = machine.console.text(20)
    return f"the end of the guest's console:\n{text}" if text.strip() else ""


def _status(machine: Machine, end: End) -> int:
    """Our exit status for the machine's end, and a word about an end that nobody asked for."""
    from kvmkit.machine import EndReason

    match end.reason:
        case EndReason.DEBUG_EXIT:
            return end.status & 0xFF
        case EndReason.POWEROFF | EndReason.STOPPED:
            return 0
        case EndReason.TIMEOUT:
            _warn("--timeout: the time is over")
            return TIMED_OUT
        case EndReason.RESET:
            panicked = "Kernel panic" in machine.console.text()
            what = "the guest's kernel panicked" if panicked else "the guest restarted, which ends `run`"
            raise GuestFault(what, _last_words(machine) if panicked else "")
        case _:
            report = "\n".join([_last_words(machine), end.report]).strip()
            raise GuestFault(f"the guest can't go on: {end.detail}", report)
