"""`kvmkit guest`: what concerns a guest from inside it."""

from __future__ import annotations

import argparse
import sys

from kvmkit.cli.doctor import open_host
from kvmkit.cli.parser import seconds

SUMMARY = "check a guest for virtio; talk to its QEMU guest agent"
TAKES_COMMAND = True


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
    agent = verbs.add_parser(
        "agent",
        help="qemu-ga of a distribution guest: run a command, shut down, or see that it answers",
        description="Talk to qemu-ga in a VM that was given --console-port org.qemu.guest_agent.0.",
        usage="kvmkit guest agent NAME [--shutdown | -- COMMAND ...]",
        epilog="exit status: COMMAND's; 1 the agent does not answer, or refuses; 124 --timeout",
    )
    agent.add_argument("name", metavar="NAME", help="the VM, which runs")
    agent.add_argument("--shutdown", action="store_true", help="have the guest power off")
    agent.add_argument("--timeout", type=seconds, metavar="SECONDS", help="for COMMAND (qemu-ga can't end it)")


def run(args: argparse.Namespace) -> int:
    if args.verb == "agent":
        return _agent(args)
    if args.command:
        from kvmkit.errors import BadInput

        raise BadInput("kvmkit guest check takes no command")
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


def _agent(args: argparse.Namespace) -> int:
    from kvmkit.guest.qga import PORT, QemuGuestAgent
    from kvmkit.manager.home import open_home
    from kvmkit.manager.sockets import port_path

    with open_home(args.name) as home, QemuGuestAgent(port_path(home, PORT)) as agent:
        if args.shutdown:
            agent.shutdown()
        elif args.command:
            done = agent.execute(args.command, timeout=args.timeout)
            sys.stdout.buffer.write(done.stdout)
            sys.stdout.flush()
            sys.stderr.buffer.write(done.stderr)
            return done.status
        else:
            print(f"qemu-ga {agent.version()} answers")
    return 0
