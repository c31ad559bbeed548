"""`kvmkit qemu`: QEMU's own command line, on our machine."""

from __future__ import annotations

import argparse
import sys
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.manager.description import Description
    from kvmkit.manager.spec import VmSpec

SUMMARY = "run what QEMU's own command line describes"

EPILOG = """\
examples:
  kvmkit qemu -enable-kvm -cpu host -m 1G -kernel vmlinuz -append console=ttyS0 -nographic
  kvmkit qemu -enable-kvm -m 1024 -mem-path /dev/hugepages -hda disk.img    a disk with a boot loader
  kvmkit qemu --show -m 1024 -hda disk.img      what is understood by it, as JSON, and what is not there

An option that we don't have is refused by its name, with the nearest that we do.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.usage = "kvmkit qemu [--show] QEMU's ARGUMENTS"
    parser.epilog = EPILOG
    parser.add_argument("arguments", nargs="*", metavar="ARGUMENTS", help="as for qemu-system-x86_64")
    # QEMU's options are for its own parser: nothing here is an option of argparse's.
    parser.prefix_chars = "\0"
    parser.set_defaults(parser=parser)


def run(args: argparse.Namespace) -> int:
    words: list[str] = args.arguments
    if words in (["-h"], ["-help"], ["--help"]):
        print(args.parser.format_help(), end="")
        return 0
    from kvmkit.manager.fit import lacking, unasked
    from kvmkit.manager.qemu_args import parse

    show = words[:1] == ["--show"]
    description = parse(words[1:] if show else words)
    missing = lacking(description)
    if show:
        import msgspec

        told = msgspec.json.encode({"machine": description, "lacking": missing})
        print(msgspec.json.format(told, indent=2).decode())
        return 0
    if missing:
        raise BadInput(f"qemu: this machine does not have {'; '.join(missing)}")
    if description.cpu_enforce:
        _enforce(description)
    for text in unasked(description):
        print(f"kvmkit: {text}", file=sys.stderr)
    from kvmkit.manager.translate import to_spec

    spec = to_spec(description)
    if description.daemonize:
        return _daemonize(spec.absolute())
    from kvmkit.cli.run import run_spec

    return run_spec(spec.absolute(), started_ns=args.started_ns or None, reboot=True)


def _daemonize(spec: VmSpec) -> int:
    """Go on in the background, as QEMU does; what it is called is told."""
    from kvmkit.manager import create
    from kvmkit.manager.spawn import spawn

    spec.machine()
    with create.made(spec, temporary=True) as home:
        try:
            spawn(home)
        except BaseException:
            home.remove()
            raise
        print(f"kvmkit: it runs as {home.name}: kvmkit console {home.name}, kvmkit stop {home.name}", file=sys.stderr)
    return 0


def _enforce(description: Description) -> None:
    """Raise BadInput when the engine that will be taken lacks a feature of the model."""
    from kvmkit.accel.choose import choose
    from kvmkit.accel.cpuid import missing
    from kvmkit.cli.cpu import software, supported

    table = software() if choose(description.accel).__name__.endswith("tcg") else supported()
    if lacks := missing(description.cpu, table):
        raise BadInput(f"qemu -cpu {description.cpu},enforce: this host lacks {' '.join(lacks)}")
