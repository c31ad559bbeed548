"""A plan of changes: shown, done, journalled, undone."""

from __future__ import annotations

import difflib
from collections.abc import Callable
from dataclasses import dataclass, field

from kvmkit.errors import HostError
from kvmkit.host.context import Context
from kvmkit.host.journal import Entry, Journal, Record, unpack
from kvmkit.host.pages import mounts
from kvmkit.host.processes import vm_processes
from kvmkit.host.steps import MakeDirectory, RemoveDirectory, Run, SetValue, Step, WriteFile
from kvmkit.host.system import Host

Say = Callable[[str], None]


@dataclass
class Plan:
    """`notes` say what is left as it is and why; `by_hand` are the changes the user must make: a file of theirs that
    is never overwritten, with the line it needs. `undoes` are the journal entries that this plan takes back."""

    topic: str
    action: str
    steps: list[Step] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)
    by_hand: list[str] = field(default_factory=list)
    undoes: list[int] = field(default_factory=list)

    def lines(self, host: Host) -> list[str]:
        """Everything that is printed while it is done, and all of --dry-run's output."""
        lines = list(self.notes)
        for step in self.steps:
            lines += shown(step, host)
        lines += self.by_hand
        return lines or ["nothing to do"]

    def carry_out(self, host: Host, journal: Journal, say: Say) -> None:
        """Do it step by step, each step said before it is done and journalled before that. When a step fails, those
        before it are undone and HostError is raised."""
        for line in self.notes:
            say(line)
        if self.steps or self.undoes:
            self._carry_out_steps(host, journal, say)
        for line in self.by_hand:
            say(line)
        if not (self.notes or self.steps or self.by_hand):
            say("nothing to do")

    def _carry_out_steps(self, host: Host, journal: Journal, say: Say) -> None:
        with journal.locked():
            entry = journal.begin(self.topic, self.action)
            for step in self.steps:
                for line in shown(step, host):
                    say(line)
                if step.live and not host.live:
                    continue
                try:
                    self._do(step, host, journal, entry)
                except HostError as error:
                    raise HostError(f"{error}{_take_back(host, journal, entry, say)}") from error
            journal.drop(self.undoes)
            journal.save()

    def _do(self, step: Step, host: Host, journal: Journal, entry: Entry) -> None:
        record = step.record(host) if step.recorded else None
        if record is not None:
            entry.records.append(record)
            journal.save()
        try:
            step.apply(host)
        except HostError:
            if record is not None:
                entry.records.remove(record)
            raise
        if record is not None:
            step.settle(host, record)


def shown(step: Step, host: Host) -> list[str]:
    lines = step.show(host)
    if step.live and not host.live:
        return [f"not for a tree of files: {line}" for line in lines]
    return lines


def _take_back(host: Host, journal: Journal, entry: Entry, say: Say) -> str:
    """Undo what a failed plan had done so far; says in a few words how that went."""
    if not entry.records:
        journal.drop([entry.id])
        journal.save()
        return ""
    back = undo_entries(host, [entry])
    say("that failed; taking back what was done:")
    for step in back.steps:
        for line in shown(step, host):
            say(line)
        try:
            step.apply(host)
        except HostError as error:
            journal.save()
            return f"; taking back failed too: {error}; see kvmkit host undo"
    journal.drop([entry.id])
    journal.save()
    return "; everything was taken back"


def undo_entries(host: Host, entries: list[Entry]) -> Plan:
    """The plan that takes `entries` back, the newest change first. A file that was edited since is left alone."""
    plan = Plan("undo", "undo", undoes=[entry.id for entry in entries])
    files: dict[str, bytes | None] = {}
    steps: dict[str, Step] = {}
    for entry in sorted(entries, key=lambda entry: entry.id, reverse=True):
        for record in reversed(entry.records):
            kind = record["kind"]
            if kind == "command":
                plan.steps.append(Run(list(record["argv"]), recorded=False))
            elif kind == "directory":
                plan.steps.append(RemoveDirectory(record["path"], live=record["path"].startswith("/dev/")))
            elif kind == "value":
                _undo_value(host, record, plan, steps)
            else:
                _undo_file(host, record, plan, files, steps)
    plan.steps = [step for step in plan.steps if not _idle(step, host)]
    return plan


def _idle(step: Step, host: Host) -> bool:
    """A step that would take back what is not there any more: restored already, or gone with a restart."""
    if isinstance(step, WriteFile):
        return step.content == host.data(step.path)
    if isinstance(step, SetValue):
        return step.value == host.value(step.path)
    if not isinstance(step, Run) or not host.live:
        return False
    context = Context(host)
    match step.argv:
        case ["umount", point]:
            return not any(mount.point == point for mount in mounts(host))
        case ["modprobe", "-r", module]:
            return context.modules.state(module) != "loaded"
        case ["groupdel", group]:
            return group not in context.groups
        case ["gpasswd", "-d", user, group]:
            return user not in context.groups.get(group, (0, ()))[1]
        case ["chgrp" | "chmod", _, path]:
            return not host.exists(path)
    return False


def _undo_value(host: Host, record: Record, plan: Plan, steps: dict[str, Step]) -> None:
    path = record["path"]
    earlier = steps.get(path)
    now = earlier.value if isinstance(earlier, SetValue) else host.value(path)
    if now != record["after"]:
        plan.notes.append(f"{path} is {now} now, not the {record['after']} kvmkit set: left as it is")
    elif isinstance(earlier, SetValue):
        earlier.value = record["before"]
    else:
        steps[path] = SetValue(path, record["before"], recorded=False)
        plan.steps.append(steps[path])


def _undo_file(host: Host, record: Record, plan: Plan, files: dict[str, bytes | None], steps: dict[str, Step]) -> None:
    path, before, after = record["path"], unpack(record["before"]), unpack(record["after"])
    now = files.get(path, host.data(path)) if path in files else host.data(path)
    if now == before:
        return
    if now != after:
        plan.by_hand += edited(path, before, after)
        return
    files[path] = before
    owner = (record["owner"][0], record["owner"][1]) if record["owner"] else None
    earlier = steps.get(path)
    if isinstance(earlier, WriteFile):
        earlier.content, earlier.mode, earlier.owner = before, record["mode"], owner
    else:
        steps[path] = WriteFile(path, before, record["mode"], owner, recorded=False)
        plan.steps.append(steps[path])


def edited(path: str, before: bytes | None, after: bytes | None) -> list[str]:
    """What to tell of a file that was edited after kvmkit changed it."""
    old, new = (part.decode("utf-8", "replace").splitlines() for part in (before or b"", after or b""))
    lines = [f"{path} was edited since kvmkit changed it and is left as it is; to undo the change:"]
    for line in difflib.ndiff(old, new):
        if line.startswith("+ "):
            lines.append(f"  remove the line  {line[2:]}")
        elif line.startswith("- "):
            lines.append(f"  add the line     {line[2:]}")
    return lines


def make_parents(host: Host, path: str) -> list[Step]:
    """Steps for the directories above `path` that are missing."""
    missing: list[Step] = []
    directory = path.rpartition("/")[0]
    while directory and not host.exists(directory):
        missing.insert(0, MakeDirectory(directory))
        directory = directory.rpartition("/")[0]
    return missing


def write_whole(host: Host, journal: Journal, plan: Plan, path: str, line: str) -> None:
    """Plan a file that consists of one line of ours. A file of the user's is shown with the line, not overwritten."""
    wanted = f"{line}\n".encode()
    found = host.data(path)
    if found == wanted or (found is not None and line in found.decode("utf-8", "replace").splitlines()):
        return
    if found and not journal.wrote(path, found):
        plan.by_hand += [f"{path} is yours and is not overwritten; add to it the line:", f"  {line}"]
        return
    plan.steps += make_parents(host, path)
    plan.steps.append(WriteFile(path, wanted))


def refuse_while_vms_run(context: Context, module: str) -> None:
    """HostError naming the VMs, when the module can't be unloaded because of them."""
    running = [process for process in context.vms if process.kvm]
    if running:
        names = ", ".join(str(process) for process in running)
        raise HostError(f"{module} can't be reloaded while VMs run: {names}; stop them first")
    loaded = context.modules.loaded.get(module)
    if loaded is not None and loaded.used_by:
        others = " ".join(loaded.used_by)
        raise HostError(f"{module} is used by the module {others}; unload it first: sudo modprobe -r {others}")
    if loaded is not None and loaded.users:
        raise HostError(f"{module} is in use by {loaded.users} VMs that can't be seen from here; stop them first")


def check_undo(host: Host, plan: Plan) -> None:
    """HostError when the plan unloads a module of KVM while VMs run."""
    unloads = [step for step in plan.steps if isinstance(step, Run) and step.argv[:2] == ["modprobe", "-r"]]
    if host.live and unloads:
        running = [process for process in vm_processes(host) if process.kvm]
        if running:
            names = ", ".join(str(process) for process in running)
            raise HostError(f"KVM's modules can't be unloaded while VMs run: {names}; stop them first")
