"""`kvmkit host`: modules, nesting, huge pages and permissions: shown, switched on and off, undone."""

from __future__ import annotations

import argparse
import os
import shlex
import shutil
import sys
from typing import TYPE_CHECKING

from kvmkit.cli.doctor import open_host, vm_names
from kvmkit.errors import HostError

if TYPE_CHECKING:
    from kvmkit.host.changes.hugepages import Wanted
    from kvmkit.host.context import Context
    from kvmkit.host.journal import Journal
    from kvmkit.host.plan import Plan
    from kvmkit.host.system import Host

SUMMARY = "set the host up: modules, nesting, huge pages, permissions"

TOPICS = {
    "modules": "KVM's kernel modules",
    "nested": "VMs inside VMs",
    "hugepages": "memory in pages of 2 MiB or 1 GiB",
    "permissions": "the group kvm, its right to /dev/kvm, its members",
}


EPILOG = """\
examples:
  kvmkit host hugepages status
  kvmkit host hugepages enable --memory 1G --persist --dry-run    what it would do: commands, and files as a diff
  sudo kvmkit host hugepages enable --memory 1G --persist         do it, and again after each restart
  sudo kvmkit host nested enable                                  until the next restart
  sudo kvmkit host permissions enable --user anna --persist
  sudo kvmkit host undo                                           take the last command back
"""

EXAMPLES = {
    "modules": "  sudo kvmkit host modules enable --persist    modprobe kvm_intel, now and at each start\n",
    "nested": "  sudo kvmkit host nested enable --persist    reload the module with nested=1; not while VMs run\n",
    "hugepages": """\
  sudo kvmkit host hugepages enable --memory 1G              550 pages of 2 MiB, and /dev/hugepages for the group kvm
  sudo kvmkit host hugepages enable --memory 4G --size 1G    four pages of 1 GiB, at /dev/hugepages1G
  sudo kvmkit host hugepages enable --memory 1G --node 1     on one NUMA node
  sudo kvmkit host hugepages disable                         give them back
""",
    "permissions": "  sudo kvmkit host permissions enable --user anna    a group for /dev/kvm, anna in it\n",
}


def configure(parser: argparse.ArgumentParser) -> None:
    parser.epilog = EPILOG
    topics = parser.add_subparsers(dest="topic", required=True, metavar="TOPIC")
    for name, text in TOPICS.items():
        topic = topics.add_parser(
            name, help=text, description=f"Show or change {text}.", epilog=f"examples:\n{EXAMPLES[name]}"
        )
        topic.add_argument("action", choices=("status", "enable", "disable"), help="what to do")
        _common(topic)
        topic.add_argument("--persist", action="store_true", help="keep it so after a restart")
        if name in ("modules", "nested"):
            topic.add_argument(
                "--vendor", choices=("intel", "amd"), help="the processor's vendor, where it can't be told"
            )
        if name == "hugepages":
            topic.add_argument("--memory", metavar="SIZE", help="guest memory that has to fit in, such as 1G")
            topic.add_argument("--size", metavar="SIZE", help="size of a page: 2M or 1G (the kernel's default)")
            topic.add_argument("--node", type=int, metavar="N", help="reserve on this NUMA node only")
        if name == "permissions":
            topic.add_argument("--user", metavar="NAME", help="who becomes a member of kvm (whoever called sudo)")
    undo = topics.add_parser("undo", help="take back the last change, or --all", description="Take back changes.")
    undo.add_argument("--all", action="store_true", help="everything kvmkit changed on this host")
    undo.add_argument("--list", action="store_true", help="only list what can be undone")
    _common(undo)


def _common(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--dry-run", action="store_true", help="print what would be done, and do nothing")
    parser.add_argument("--root", metavar="DIR", default="/", help="work on a tree of files instead of this system")


def run(args: argparse.Namespace) -> int:
    from kvmkit.host.context import Context
    from kvmkit.host.journal import Journal

    host = open_host(args.root)
    context, journal = Context(host, vm_names() if host.live else None), Journal(host)
    if args.topic == "undo" and args.list:
        for entry in journal.entries:
            print(f"{entry.id}  {entry.time}  {entry.action}")
        return 0
    if args.topic != "undo" and args.action == "status":
        return _status(args.topic, context, journal)
    plan = _plan(args, context, journal)
    if args.dry_run:
        print("\n".join(plan.lines(host)))
        return 0
    if not host.is_root and (plan.steps or plan.undoes):
        raise HostError(f"this needs root; nothing was done: {sudo_line()}")
    plan.carry_out(host, journal, print)
    return _verify(args, host, plan)


def _plan(args: argparse.Namespace, context: Context, journal: Journal) -> Plan:
    from kvmkit.host.changes import hugepages, modules, nested, permissions, undo

    if args.topic == "undo":
        return undo.undo(context, journal, args.all)
    enable = args.action == "enable"
    if args.topic == "modules":
        return (modules.enable if enable else modules.disable)(context, journal, args.persist, args.vendor)
    if args.topic == "nested":
        return (nested.enable if enable else nested.disable)(context, journal, args.persist, args.vendor)
    if args.topic == "permissions":
        return (
            permissions.enable(context, journal, args.persist, args.user)
            if enable
            else permissions.disable(context, journal)
        )
    if enable:
        return hugepages.enable(context, journal, _wanted(args), args.persist)
    return hugepages.disable(context, journal, _page_size(args))


def _page_size(args: argparse.Namespace) -> int | None:
    from kvmkit.host.pages import parse_size

    return parse_size(args.size, "--size") if args.size else None


def _wanted(args: argparse.Namespace) -> Wanted:
    from kvmkit.errors import BadInput
    from kvmkit.host.changes.hugepages import Wanted
    from kvmkit.host.pages import parse_size

    if not args.memory:
        raise BadInput("kvmkit host hugepages enable: say how much guest memory has to fit in: --memory 1G")
    return Wanted(parse_size(args.memory, "--memory"), _page_size(args), args.node)


def _verify(args: argparse.Namespace, host: Host, plan: Plan) -> int:
    """Read back from the kernel what was asked of it."""
    from kvmkit.host.changes import hugepages, nested
    from kvmkit.host.context import Context

    if not host.live or args.topic == "undo":
        return 0
    context = Context(host)
    enable = args.action == "enable"
    if args.topic == "nested" and plan.steps:
        print(nested.verify(context, enable, args.vendor))
    if args.topic == "hugepages" and enable:
        complete, lines = hugepages.verify(context, hugepages.reservation(context, _wanted(args)))
        print("\n".join(lines))
        return 0 if complete else 1
    return 0


def _status(topic: str, context: Context, journal: Journal) -> int:
    from kvmkit.host.checks import access, device, kernel, memory, nesting
    from kvmkit.host.report import Report, Row

    report = Report(topic)
    if topic == "modules":
        report.rows = [row for row in kernel.rows(context) if row.id.startswith("module.")]
    elif topic == "nested":
        report.rows = list(nesting.rows(context))
    elif topic == "hugepages":
        report.rows = list(memory.rows(context))
    else:
        report.rows = [*device.rows(context, None), *access.rows(context)]
        report.rows = [row for row in report.rows if row.id != "kvm.speed"]
    for entry in journal.of(topic):
        report.rows.append(Row(f"change.{entry.id}", "Changed by kvmkit", entry.time, "note", entry.action))
    report.show(sys.stdout)
    return 0


def sudo_line() -> str:
    """The very command again, with sudo: by its full path where sudo would not find it."""
    program = sys.argv[0]
    if os.path.basename(program) == "__main__.py":
        launcher = os.path.abspath(os.path.join(program, "../../../kvmkit"))
        command = [os.path.abspath(sys.executable), "-m", "kvmkit"]
        extra = [f"PYTHONPATH={os.environ['PYTHONPATH']}"] if os.environ.get("PYTHONPATH") else []
        command = [launcher] if os.path.isfile(launcher) else [*extra, *command]
    else:
        found = shutil.which("kvmkit", path="/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin")
        command = ["kvmkit"] if found else [os.path.abspath(program)]
    return shlex.join(["sudo", *command, *sys.argv[1:]])
