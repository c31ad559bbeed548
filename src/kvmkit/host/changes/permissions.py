"""`kvmkit host permissions`: the group kvm, its right to /dev/kvm, and who is in it."""

from __future__ import annotations

import os
import re

from kvmkit.errors import BadInput, HostError
from kvmkit.host.changes.groups import GROUP, plan_group
from kvmkit.host.context import Context
from kvmkit.host.journal import Journal
from kvmkit.host.plan import Plan, undo_entries, write_whole
from kvmkit.host.steps import Run

TOPIC = "permissions"
RULE_FILE = "/etc/udev/rules.d/65-kvm.rules"
RULE = f'KERNEL=="kvm", GROUP="{GROUP}", MODE="0660", OPTIONS+="static_node=kvm"'
RULE_DIRECTORIES = ("/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d")


def enable(context: Context, journal: Journal, persist: bool, user: str | None = None) -> Plan:
    """`user` is who becomes a member; None: whoever called sudo, or nobody."""
    host = context.host
    plan = Plan(TOPIC, "permissions enable")
    users = _users(context)
    who = user or (os.environ.get("SUDO_USER", "") if host.live else "")
    if user is not None and user not in users:
        raise BadInput(f"--user {user}: there is no such user in {host.path('/etc/passwd')}")
    gid = plan_group(context, plan)
    _device(context, plan, gid)
    if persist and not _has_rule(context):
        write_whole(host, journal, plan, RULE_FILE, RULE)
        if any(host.program(name) for name in ("udevadm",)):
            plan.steps.append(Run(["udevadm", "control", "--reload"], undo=["udevadm", "control", "--reload"]))
    if who and who != "root" and who in users:
        _member(context, plan, who)
    return plan


def _device(context: Context, plan: Plan, gid: int) -> None:
    found = context.host.stat("/dev/kvm")
    if found is None:
        plan.notes.append("/dev/kvm is not there yet: kvmkit host modules enable")
        return
    mode = found.st_mode & 0o7777
    if mode & 0o006 == 0o006:
        plan.notes.append(f"/dev/kvm has mode {mode:04o}: everyone may open it already")
        return
    if found.st_gid != gid:
        plan.steps.append(
            Run(["chgrp", str(gid), "/dev/kvm"], undo=["chgrp", str(found.st_gid), "/dev/kvm"]),
        )
    if mode & 0o060 != 0o060:
        plan.steps.append(Run(["chmod", "0660", "/dev/kvm"], undo=["chmod", f"{mode:04o}", "/dev/kvm"]))


def _has_rule(context: Context) -> bool:
    """Whether udev gives /dev/kvm to the group already, as systemd's 50-udev-default.rules does."""
    host = context.host
    for directory in RULE_DIRECTORIES:
        for name in host.names(directory):
            for line in (host.text(f"{directory}/{name}") or "").splitlines() if name.endswith(".rules") else ():
                ours = re.search(r'^\s*KERNEL=="kvm"', line)
                if ours and re.search(rf'GROUP="{GROUP}"', line) and re.search(r'MODE="066[06]"', line):
                    return True
    return False


def _users(context: Context) -> dict[str, int]:
    """/etc/passwd: name -> primary gid."""
    found = {}
    for line in (context.host.text("/etc/passwd") or "").splitlines():
        fields = line.split(":")
        if len(fields) >= 4 and fields[3].isdigit():
            found[fields[0]] = int(fields[3])
    return found


def _member(context: Context, plan: Plan, user: str) -> None:
    gid, members = context.groups.get(GROUP, (-1, ()))
    if user in members or _users(context)[user] == gid:
        plan.notes.append(f"{user} is in the group {GROUP} already")
        return
    plan.steps.append(Run(["usermod", "-aG", GROUP, user], undo=["gpasswd", "-d", user, GROUP]))
    plan.notes.append(f"{user} is in {GROUP} from the next log-in on (or by: newgrp {GROUP})")


def disable(context: Context, journal: Journal) -> Plan:
    entries = journal.of(TOPIC)
    if not entries:
        raise HostError("kvmkit changed no permissions here; there is nothing to take back")
    plan = undo_entries(context.host, entries)
    plan.topic, plan.action = TOPIC, "permissions disable"
    return plan
