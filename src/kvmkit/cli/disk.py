"""`kvmkit disk`: make disks, and look after them."""

from __future__ import annotations

import argparse
from pathlib import Path

from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["disk"].summary

EPILOG = """\
examples:
  kvmkit disk create data.raw 20G                 it takes room on the host as it is written
  kvmkit disk create work.qcow2 --base data.raw   an overlay: data.raw stays as it is
  kvmkit disk commit work.qcow2                   write the overlay's changes into data.raw
  kvmkit disk resize data.raw 40G                 the file system on it is the guest's to make larger
  kvmkit disk info data.raw --json
  kvmkit disk check work.qcow2                    exit status 1: something is wrong with it

Raw disks are kvmkit's own; for qcow2, qemu-img does the work. A disk that a VM has is refused, and the VM named.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    topics = parser.add_subparsers(dest="topic", required=True, metavar="WHAT")

    def verb(name: str, text: str) -> argparse.ArgumentParser:
        made = topics.add_parser(name, help=text, description=text[:1].upper() + text[1:] + ".")
        made.add_argument("path", metavar="PATH", type=Path)
        return made

    create = verb("create", "make an empty disk, or an overlay above one")
    create.add_argument("size", metavar="SIZE", nargs="?", help="such as 20G; of an overlay, its base's if left out")
    create.add_argument("--format", default="", metavar="FORMAT", help="raw or qcow2 (default: by PATH's name)")
    create.add_argument("--base", type=Path, metavar="DISK", help="make an overlay above this disk")
    resize = verb("resize", "change a disk's size")
    resize.add_argument("size", metavar="SIZE", help="such as 40G, or +10G")
    resize.add_argument("--shrink", action="store_true", help="let it become smaller: what is beyond is cut off")
    verb("commit", "write an overlay's changes into the disk it is above")
    verb("check", "look for damage")
    info = verb("info", "show format, sizes and who has it")
    info.add_argument("--json", action="store_true", help="print it as JSON; sizes in bytes")


def run(args: argparse.Namespace) -> int:
    from kvmkit.machine.spec import parse_size
    from kvmkit.manager import diskfiles

    if args.topic == "create":
        size = parse_size(args.size, "SIZE", least=1) if args.size is not None else 0
        diskfiles.create(args.path, size, args.format, base=args.base)
    elif args.topic == "resize":
        size = parse_size(args.size.removeprefix("+"), "SIZE", least=1)
        if args.size.startswith("+"):
            size += diskfiles.info(args.path).size
        diskfiles.resize(args.path, size, shrink=args.shrink)
    elif args.topic == "commit":
        print(diskfiles.commit(args.path))
    elif args.topic == "check":
        wrong = diskfiles.check(args.path)
        for line in wrong:
            print(line)
        return 1 if wrong else 0
    else:
        _info(args)
    return 0


def _info(args: argparse.Namespace) -> None:
    from kvmkit.cli.ps import size
    from kvmkit.manager import diskfiles

    found = diskfiles.info(args.path)
    if args.json:
        import msgspec

        print(msgspec.json.format(msgspec.json.encode(found), indent=2).decode())
        return
    print(f"{found.path}: {found.format}, {size(found.size)}, {size(found.used)} on the host")
    if found.backing:
        print(f"above {found.backing}")
    if found.in_use:
        print(f"in use by {found.in_use}")
