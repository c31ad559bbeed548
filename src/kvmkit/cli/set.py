"""`kvmkit set`: change a VM while it runs; its root disk's size also when it does not."""

from __future__ import annotations

import argparse

from kvmkit.cli.verbs import VERBS
from kvmkit.errors import BadInput

SUMMARY = VERBS["set"].summary
SETTABLE = {
    "disk": ("N,OPTION...", "a disk's bps=, iops=, bps_burst=, iops_burst=, or its size=2G (size=now: its file's)"),
    "scsi": (
        "N,OPTION...",
        "a SCSI target's bps=, iops= and bursts, or disc=PATH: another CD in its drive; disc= takes it out",
    ),
    "memory-target": ("SIZE", "how much memory its guest is to keep, such as 256M; needs --balloon at its start"),
    "net": ("N,OPTION...", "a network card's link=up or link=down, bps=, iops= (frames) and their bursts"),
    "policy": ("POLICY", "what the guest may send: all, deny, dns or allow=ADDRESS:PORT,..."),
    "root-size": ("SIZE", "its root disk, larger than it is, such as 20G; also while it does not run"),
    "rng": ("bps=N,iops=N", "how much entropy it gets a second"),
}
"""Option: what it takes, and what it sets. What the VM's process makes of it stands in machine/changes.py."""
EPILOG = """examples:
  kvmkit set web --disk 0,iops=500,bps=20M     hold its first disk to that; 0 is no limit
  kvmkit set web --disk 1,size=20G             enlarge its second disk; the guest is told
  kvmkit set web --root-size 20G               enlarge its root disk, and the file system on it
  kvmkit set web --memory-target 256M          have it give the rest back to the host
  kvmkit set web --net 0,link=down             pull the cable of its first network card
  kvmkit set web --policy allow=192.0.2.1:443,dns
  kvmkit set web --scsi 1,disc=second.iso      change a CD
  kvmkit set web --scsi 0,iops=500             hold the SCSI disk at target 0 to that

It holds until the VM is started again; sizes stay. How to see its disks: kvmkit inspect web"""


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    parser.add_argument("name", metavar="NAME", help="the VM, which runs (for --root-size it need not)")
    for option, (metavar, text) in SETTABLE.items():
        parser.add_argument(f"--{option}", action="append", default=[], metavar=metavar, help=text)


def run(args: argparse.Namespace) -> int:
    import os

    from kvmkit.manager import control
    from kvmkit.manager.home import open_home

    changes = [(option, text) for option in SETTABLE for text in getattr(args, option.replace("-", "_"))]
    if not changes:
        raise BadInput(f"kvmkit set {args.name}: say what to change, such as --disk 0,iops=500")
    for i, (option, text) in enumerate(changes):
        number, comma, path = text.partition(",disc=")
        if option == "scsi" and comma and path:  # the VM's process has another current directory
            changes[i] = (option, f"{number},disc={os.path.abspath(path)}")
    with open_home(args.name) as home:
        if not home.running() and all(option == "root-size" for option, _ in changes):
            from kvmkit.manager import rootdisk

            for _, text in changes:
                print(rootdisk.grow(home, text))
            return 0
        for line in control.ask(home, "set", changes=changes)["now"]:
            print(line)
    return 0
