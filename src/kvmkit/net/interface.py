"""Interfaces of the host's: what is known of one, and the few things done to one without a library."""

from __future__ import annotations

import errno
import fcntl
import os
import socket
import struct

from kvmkit.errors import BadInput, HostError

MOST_NAME = 15
SIOCGIFFLAGS, SIOCSIFFLAGS, SIOCBRADDIF, SIOCGIFINDEX = 0x8913, 0x8914, 0x89A2, 0x8933
UP = 1


def check_name(name: str, option: str) -> None:
    """Raise BadInput for what the kernel has no interface of that name for. Source: dev_valid_name() in Linux."""
    if not 0 < len(name.encode()) <= MOST_NAME or name in (".", "..") or any(c in "/:" or c.isspace() for c in name):
        raise BadInput(f"{option}{name}: no name of a network interface, which has up to {MOST_NAME} letters")


def _read(name: str, file: str) -> str:
    try:
        with open(f"/sys/class/net/{name}/{file}", encoding="ascii") as opened:
            return opened.read().strip()
    except (OSError, ValueError):
        return ""


def exists(name: str) -> bool:
    return os.path.exists(f"/sys/class/net/{name}")


def interface_mtu(name: str) -> int:
    """Its MTU; 0 where that can't be read."""
    text = _read(name, "mtu")
    return int(text) if text.isdigit() else 0


def is_persistent_tap(name: str) -> int | None:
    """The IFF_ flags of a TAP device that is there; None: there is none of that name."""
    text = _read(name, "tun_flags")
    return int(text, 16) if text else None


def is_bridge(name: str) -> bool:
    return os.path.isdir(f"/sys/class/net/{name}/bridge")


def user_name() -> str:
    import pwd

    try:
        return pwd.getpwuid(os.getuid()).pw_name
    except KeyError:
        return str(os.getuid())


def set_up(name: str) -> None:
    """Bring it up. Raises OSError."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
        answer = fcntl.ioctl(asking, SIOCGIFFLAGS, struct.pack("16sH22x", name.encode(), 0))
        (flags,) = struct.unpack_from("H", answer, 16)
        if not flags & UP:
            fcntl.ioctl(asking, SIOCSIFFLAGS, struct.pack("16sH22x", name.encode(), flags | UP))


def add_to_bridge(bridge: str, name: str) -> None:
    """Plug an interface into a bridge, and bring it up. BadInput, HostError."""
    if not is_bridge(bridge):
        what = "is no bridge" if exists(bridge) else "there is none"
        raise BadInput(
            f"bridge={bridge}: {what}: sudo ip link add {bridge} type bridge && sudo ip link set {bridge} up"
        )
    try:
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC) as asking:
            index = struct.unpack_from("i", fcntl.ioctl(asking, SIOCGIFINDEX, struct.pack("16s24x", name.encode())), 16)
            try:
                fcntl.ioctl(asking, SIOCBRADDIF, struct.pack("16si20x", bridge.encode(), *index))
            except OSError as error:
                if error.errno != errno.EBUSY:
                    raise
        set_up(name)
    except OSError as error:
        if error.errno in (errno.EPERM, errno.EACCES):
            raise HostError(f"bridge={bridge}: only root can plug a VM in: run kvmkit with sudo") from None
        raise HostError(f"bridge={bridge}: can't plug {name} in: {error.strerror}") from None
