"""/dev/kvm: there, permitted, its API version, and how fast it really is."""

from __future__ import annotations

import fcntl
import os
import stat
from collections.abc import Iterator

from kvmkit.host.context import Context
from kvmkit.host.report import Row, Speed

GROUP = "/dev/kvm"
DEVICE = "/dev/kvm"
KVM_GET_API_VERSION = 0xAE00  # _IO(KVMIO, 0x00), linux/kvm.h
API_VERSION = 12  # the only one since Linux 2.6.22


def rows(context: Context, speed: Speed | None) -> Iterator[Row]:
    host = context.host
    found = host.stat(DEVICE)
    if found is None:
        text = "not there: no VM can be accelerated"
        fix = ""
        if host.container:
            fix = {"docker": "docker run --device /dev/kvm ...", "podman": "podman run --device /dev/kvm ..."}.get(
                host.container, "give the container /dev/kvm"
            )
        elif context.cpu.extension and not context.modules.running("kvm"):
            fix = "sudo kvmkit host modules enable --persist"
        elif context.modules.running("kvm") and context.modules.running(context.vendor_module):
            fix = "sudo mknod /dev/kvm c 10 232"
        yield Row("kvm.device", GROUP, "device", "fail", text, fix)
        return
    if host.live and not stat.S_ISCHR(found.st_mode):
        yield Row("kvm.device", GROUP, "device", "fail", "is no character device", "sudo rm /dev/kvm")
        return
    names = {gid: name for name, (gid, _) in context.groups.items()}
    owner = names.get(found.st_gid, str(found.st_gid))
    yield Row("kvm.device", GROUP, "device", "ok", f"there, mode {found.st_mode & 0o7777:04o}, group {owner}")
    if not host.live:
        yield _permission_by_mode(context, found)
        yield Row("kvm.speed", GROUP, "speed", "unknown", "not measured: this is a tree of files")
        return
    try:
        fd = os.open(DEVICE, os.O_RDWR | os.O_CLOEXEC)
    except PermissionError:
        yield Row("kvm.permission", GROUP, "permission", "fail", "you may not open it", _mend(context, found))
        return
    except OSError as error:
        text = f"it does not open ({error.strerror}): the module behind it is not loaded"
        yield Row("kvm.permission", GROUP, "permission", "fail", text, "sudo kvmkit host modules enable --persist")
        return
    try:
        version = fcntl.ioctl(fd, KVM_GET_API_VERSION, 0)
    except OSError as error:
        version = -(error.errno or 1)
    finally:
        os.close(fd)
    yield Row("kvm.permission", GROUP, "permission", "ok", "you may open it")
    if version == API_VERSION:
        yield Row("kvm.api", GROUP, "API version", "ok", str(version))
    else:
        yield Row("kvm.api", GROUP, "API version", "fail", f"{version}; {API_VERSION} is needed")
        return
    yield _speed(speed)


def _permission_by_mode(context: Context, found: os.stat_result) -> Row:
    uid, gids = context.own_ids
    allowed = uid == 0 or found.st_mode & 0o006 == 0o006 or (found.st_gid in gids and found.st_mode & 0o060 == 0o060)
    if allowed:
        return Row("kvm.permission", GROUP, "permission", "ok", "its mode lets you open it")
    return Row("kvm.permission", GROUP, "permission", "fail", "you may not open it", _mend(context, found))


def _mend(context: Context, found: os.stat_result) -> str:
    names = {gid: name for name, (gid, _) in context.groups.items()}
    if found.st_mode & 0o060 == 0o060 and names.get(found.st_gid) == "kvm":
        return "sudo usermod -aG kvm $USER    # then log in again"
    return "sudo kvmkit host permissions enable --persist"


def _speed(speed: Speed | None) -> Row:
    if speed is None:
        return Row("kvm.speed", GROUP, "speed", "unknown", "not measured")
    parts = []
    if speed.ring0 is not None:
        parts.append(f"ring 0: {speed.ring0 / 1e6:,.1f} million instructions/s")
    if speed.exit is not None:
        parts.append(f"an exit costs {speed.exit / 1000:,.1f} us")
    if speed.text:
        parts.append(speed.text)
    if speed.useful:
        return Row("kvm.speed", GROUP, "speed", "ok", "; ".join(parts) or "guest code runs on the processor")
    parts.append("guest kernels are emulated by it, not run: the software CPU is faster")
    return Row("kvm.speed", GROUP, "speed", "warn", "; ".join(parts))
