"""QEMU's -netdev and -nic: what a network card hangs on."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Literal

from kvmkit.errors import BadInput
from kvmkit.manager.description import Forward, Network
from kvmkit.manager.qemu_options import Pairs, refuse

MAC = re.compile(r"[0-9a-f]{2}(:[0-9a-f]{2}){5}", re.IGNORECASE | re.ASCII)

NEAREST = {
    "socket": "by a UNIX socket: -netdev stream,server=off,addr.type=unix,addr.path=PATH; VMs among themselves: "
    "kvmkit run --net switch=NAME",
    "dgram": "by a UNIX stream socket: -netdev stream,server=off,addr.type=unix,addr.path=PATH",
    "vhost-vdpa": "the device in another process: -netdev vhost-user,chardev=ID",
    "vde": "VMs among themselves: kvmkit run --net switch=NAME",
    "hubport": "VMs among themselves: kvmkit run --net switch=NAME",
}
KINDS = "user, passt, tap, bridge, stream and vhost-user"


def network(kind: str, pairs: Pairs) -> Network:
    if kind == "user":
        forwards = tuple(_forward(text) for text in pairs.all("hostfwd"))
        pairs.ignore("net", "host", "hostname", "dns", "dhcpstart", "dnssearch", "ipv4", "ipv6", "domainname")
        return Network(kind="user", forwards=forwards, restrict=pairs.flag("restrict"))
    if kind == "passt":  # QEMU 10.1; ours is passt in any case
        pairs.ignore("path", "quiet", "mtu")
        return Network(kind="user", forwards=(*_ports("tcp", pairs), *_ports("udp", pairs)))
    if kind == "tap":
        for key in ("script", "downscript"):
            value = pairs.get(key, "no")
            if value not in ("no", ""):
                raise refuse(f"-netdev tap,{key}={value}", f"set the device up beforehand, and say {key}=no")
        pairs.ignore("vhost", "queues", "vnet_hdr", "sndbuf")
        return Network(kind="tap", interface=pairs.get("ifname"))
    if kind == "bridge":
        pairs.ignore("helper")
        return Network(kind="bridge", interface=pairs.get("br", "br0"))
    if kind == "stream":
        if pairs.get("addr.type", "unix") != "unix" or pairs.flag("server"):
            raise refuse("-netdev stream", "it connects to a UNIX socket: server=off,addr.type=unix,addr.path=PATH")
        pairs.ignore("reconnect", "reconnect-ms")
        return Network(kind="stream", interface=pairs.need("addr.path"))
    raise refuse(f"-netdev {kind}", NEAREST.get(kind, f"it has {KINDS}"))


def _forward(text: str) -> Forward:
    """[tcp|udp]:[address]:port-[address]:port"""
    found = re.fullmatch(r"(tcp|udp)?:([^:-]*):(\d{1,5})-([^:]*):(\d{1,5})", text, re.ASCII)
    if not found or not (0 < int(found[3]) < 65536 and 0 < int(found[5]) < 65536):
        raise BadInput(f"qemu hostfwd={text}: write it like tcp::2222-:22")
    protocol: Literal["tcp", "udp"] = "udp" if found[1] == "udp" else "tcp"
    return Forward(
        protocol=protocol,
        host_address=found[2],
        host_port=int(found[3]),
        guest_address=found[4],
        guest_port=int(found[5]),
    )


def _ports(protocol: Literal["tcp", "udp"], pairs: Pairs) -> Iterator[Forward]:
    """passt(1)'s --tcp-ports: [address/]port[:port in the guest], with commas between them."""
    key = f"{protocol}-ports"
    for text in pairs.get(key).split(","):
        if not text:
            continue
        found = re.fullmatch(r"(?:([^/%]+)/)?(\d{1,5})(?::(\d{1,5}))?", text, re.ASCII)
        ports = (int(found[2]), int(found[3] or found[2])) if found else (0, 0)
        if not found or not all(0 < port < 65536 for port in ports):
            raise BadInput(f"qemu -netdev passt,{key}={text}: write single ports, like 2222:22")
        yield Forward(
            protocol=protocol, host_address=found[1] or "", host_port=ports[0], guest_address="", guest_port=ports[1]
        )


def mac_of(text: str, option: str) -> str:
    if text and not MAC.fullmatch(text):
        raise BadInput(f"qemu -{option}: mac={text} is no MAC address; write it like 52:54:00:12:34:56")
    return text.lower()
