"""`kvmkit network`: networks of the host's that VMs share."""

from __future__ import annotations

import argparse
import sys

from kvmkit.cli.verbs import VERBS

SUMMARY = VERBS["network"].summary

EPILOG = """\
examples:
  sudo kvmkit network create lab           a bridge with NAT, DHCP and DNS
  sudo kvmkit run --net network=lab --detach --name web
  sudo kvmkit run --net network=lab -- wget -O - http://web/
  kvmkit network ls
  sudo kvmkit network rm lab

VMs on it find each other by name, and the host as `host`. It lasts until `rm`, or the host's restart.
"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parts = parser.add_subparsers(dest="part", required=True, metavar="WHAT")
    create = parts.add_parser("create", help="make a network (as root)")
    create.add_argument("name", metavar="NAME", help="its name: small letters, digits and -")
    text = "its addresses (default: a free /24 of 10.73.0.0/16)"
    create.add_argument("--subnet", default="", metavar="SUBNET", help=text)
    listing = parts.add_parser("ls", help="list networks")
    listing.add_argument("--json", action="store_true", help="print them as JSON")
    remove = parts.add_parser("rm", help="remove networks (as root)")
    remove.add_argument("names", nargs="+", metavar="NAME", help="may be several")
    remove.add_argument("--force", "-f", action="store_true", help="also when VMs are on it, which then have none")


def run(args: argparse.Namespace) -> int:
    from kvmkit.net.lan import setup

    if args.part == "create":
        lan = setup.create(args.name, args.subnet)
        print(f"{lan.name} {lan.subnet}")
        return 0
    if args.part == "rm":
        for name in args.names:
            setup.remove(name, force=args.force)
        return 0
    return _ls(args.json)


def _ls(as_json: bool) -> int:
    from kvmkit.net.lan import state

    found = [
        {
            "name": lan.name,
            "bridge": lan.bridge,
            "subnet": lan.subnet,
            "running": state.dnsmasq_pid(lan.name) > 0,
            "vms": [{"name": each.name, "address": each.address, "mac": each.mac} for each in state.leases(lan.name)],
        }
        for lan in state.every()
    ]
    if as_json:
        import msgspec

        sys.stdout.write(msgspec.json.format(msgspec.json.encode(found), indent=2).decode() + "\n")
        return 0
    from kvmkit.bench.summary import table

    rows = []
    for lan in state.every():
        vms = " ".join(f"{each.name or each.mac}={each.address}" for each in state.leases(lan.name))
        rows.append([lan.name, lan.subnet, lan.bridge, vms or "-"])
    table(["NAME", "SUBNET", "BRIDGE", "VMS"], rows, sys.stdout)
    return 0
