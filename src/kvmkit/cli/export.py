"""`kvmkit export`: a VM as libvirt's XML, QEMU's command line, or TOML."""

from __future__ import annotations

import argparse
import os
import shlex
from typing import TYPE_CHECKING

from kvmkit.cli.import_domain import write
from kvmkit.cli.main import say
from kvmkit.cli.verbs import VERBS

if TYPE_CHECKING:
    from kvmkit.manager.spec import VmSpec

SUMMARY = VERBS["export"].summary

EPILOG = """\
examples:
  kvmkit export web --libvirt -o web.xml   then: virsh define web.xml
  kvmkit export web.toml --qemu            the command line, to be typed
  kvmkit export web --toml                 what `kvmkit run FILE.toml` reads

What the other form can't hold is listed on standard error.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("vm", metavar="NAME|FILE", help="a VM's name, or a .toml or .json file that describes one")
    form = parser.add_mutually_exclusive_group(required=True)
    form.add_argument("--libvirt", action="store_true", help="libvirt's domain XML")
    form.add_argument("--qemu", action="store_true", help="QEMU's command line")
    form.add_argument("--toml", action="store_true", help="kvmkit's own file")
    parser.add_argument("--output", "-o", metavar="FILE", help="write here instead of standard output")
    parser.add_argument("--force", "-f", action="store_true", help="write over a file that is there")


def run(args: argparse.Namespace) -> int:
    from kvmkit.manager.fit_firmware import kept_otherwise
    from kvmkit.manager.libvirt_write import write_domain
    from kvmkit.manager.qemu_write import write_qemu
    from kvmkit.manager.translate import to_description, write_spec

    spec = _spec(args.vm, copied=args.toml)
    if args.toml:
        write(write_spec(spec), args.output, args.force)
        return 0
    description, left = to_description(spec)
    if args.libvirt:
        text, unwritten = write_domain(description)
        left += unwritten
    else:
        text = shlex.join(["qemu-system-x86_64", *write_qemu(description)]) + "\n"
        left += [more] if (more := kept_otherwise(description.firmware)) else []
    for line in left:
        say(f"left out: {line}")
    write(text, args.output, args.force)
    return 0


def _spec(vm: str, *, copied: bool) -> VmSpec:
    """`copied`: as another VM is to be made, which gets UEFI variables of its own."""
    if vm.endswith((".toml", ".json")):
        from pathlib import Path

        from kvmkit.manager.specfile import read_spec

        return read_spec(vm).absolute(Path(os.path.abspath(vm)).parent)
    import msgspec

    from kvmkit.manager import home
    from kvmkit.manager.own_files import NVRAM

    with home.open_home(vm) as own:
        found: VmSpec = msgspec.structs.replace(own.spec(), name=own.name)
        if not copied and not found.nvram and (own.path / NVRAM).exists():
            found = msgspec.structs.replace(found, nvram=str(own.path / NVRAM))
        return found
