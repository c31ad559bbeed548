"""The group kvm: found, or planned with a gid that is known before it is made."""

from __future__ import annotations

from kvmkit.host.context import Context
from kvmkit.host.plan import Plan
from kvmkit.host.steps import Run, WriteFile

GROUP = "kvm"
PREFERRED_GID = 78  # what Arch Linux gives it for good
HIGHEST_SYSTEM_GID = 999  # SYS_GID_MAX of login.defs


def plan_group(context: Context, plan: Plan) -> int:
    """The gid of kvm; where there is no such group, its making is added to the plan."""
    if GROUP in context.groups:
        return context.groups[GROUP][0]
    taken = {found for found, _ in context.groups.values()}
    choices: tuple[int, ...] = (PREFERRED_GID, *range(HIGHEST_SYSTEM_GID, 100, -1))
    gid = next(choice for choice in choices if choice not in taken)
    if context.host.live:
        undo = ["groupdel", GROUP]
        plan.steps.append(Run(["groupadd", "--system", "--gid", str(gid), GROUP], undo=undo))
    else:
        text = context.host.data("/etc/group") or b""
        text += b"" if text.endswith(b"\n") or not text else b"\n"
        plan.steps.append(WriteFile("/etc/group", text + f"{GROUP}:x:{gid}:\n".encode()))
    return gid
