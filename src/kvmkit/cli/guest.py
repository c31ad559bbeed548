"""`kvmkit guest`: what concerns a guest from inside it."""

from __future__ import annotations

import argparse
import sys

from kvmkit.cli.doctor import open_host

SUMMARY = "check a guest for virtio, from inside it"


def configure(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(dest="verb", required=True, metavar="VERB")
    check = verbs.add_parser(
        "check",
        help="virtio options of this kernel, modules, devices and their drivers",
        description="Check virtio from inside a guest.",
        epilog="examples:\n"
        "  kvmkit guest check          inside a guest\n"
        "  kvmkit guest check web      from outside, in a VM that runs\n\n"
        "exit status: 0 every virtio device has its driver, 1 one has none, 2 there is no virtio device",
    )
    check.add_argument("--json", action="store_true", help="print the rows as JSON")
    check.add_argument("name", nargs="?", metavar="NAME", help="look into this VM, which runs (default: this system)")
    check.add_argument("--root", metavar="DIR", default="/", help="look at a tree of files instead of this system")


def run(args: argparse.Namespace) -> int:
    from kvmkit.host.inside import check

    if args.name is not None:
        from kvmkit.errors import BadInput

        if args.root != "/":
            raise BadInput("--root and NAME: give one of them")
        from kvmkit.manager.guest_tree import copied
        from kvmkit.manager.home import open_home

        with open_home(args.name) as home, copied(home) as root:
            report = check(open_host(root))
    else:
        report = check(open_host(args.root))
    if args.json:
        print(report.as_json())
    else:
        report.show(sys.stdout)
    return report.status
