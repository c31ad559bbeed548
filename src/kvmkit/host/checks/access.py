"""User and groups: whether kvm's members include whoever asks."""

from __future__ import annotations

from collections.abc import Iterator

from kvmkit.host.context import Context
from kvmkit.host.report import Row

GROUP = "User"


def rows(context: Context) -> Iterator[Row]:
    uid, gids = context.own_ids
    names = sorted(name for name, (gid, _) in context.groups.items() if gid in gids)
    if uid == 0:
        yield Row("user", GROUP, "user", "note", "root")
    else:
        yield Row("user", GROUP, "user", "note", f"uid {uid}, in the groups {', '.join(names) or '(none)'}")
    kvm = context.groups.get("kvm")
    fix = "sudo kvmkit host permissions enable --persist"
    if kvm is None:
        yield Row("group.kvm", GROUP, "group kvm", "note", "there is none: only root opens /dev/kvm by default", fix)
        return
    gid, members = kvm
    listed = f"gid {gid}, members: {', '.join(members) or 'none'}"
    if uid == 0 or gid in gids:
        yield Row("group.kvm", GROUP, "group kvm", "ok", listed)
    else:
        yield Row("group.kvm", GROUP, "group kvm", "note", f"{listed}; you are not in it", "sudo usermod -aG kvm $USER")
