"""What can be said of a network card: checked in one place, before anything is opened."""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import NamedTuple

from kvmkit.errors import BadInput

NAMED = ("tap", "bridge", "network", "socket", "switch")
SEVERAL_QUEUES = ("tap", "bridge", "network")
MOST_PAIRS = 8
LONGEST_PATH = 107
"""Bytes in a UNIX socket's path (sockaddr_un)."""
_MAC = re.compile(r"[0-9a-fA-F]{2}(?::[0-9a-fA-F]{2}){5}", re.ASCII)
_PUBLISH = re.compile(
    r"(?:(?P<address>\[[^]]*\]|[^:\[\]]*):)?(?P<port>\d{1,5}):(?P<guest>\d{1,5})(?:/(?P<protocol>\w+))?"
)


class Published(NamedTuple):
    """A port of the host's that leads to the guest."""

    protocol: str
    address: str
    port: int
    guest_port: int


def parse_mac(text: str) -> bytes:
    """6 bytes. BadInput for what is no address of a card."""
    if not _MAC.fullmatch(text):
        raise BadInput(f"mac={text}: no MAC address, such as 52:54:00:12:34:56")
    mac = bytes.fromhex(text.replace(":", ""))
    if mac[0] & 1 or not any(mac):
        raise BadInput(f"mac={text}: not the address of one card: its first byte has to be even")
    return mac


def parse_publish(text: str) -> Published:
    """[ADDRESS:]PORT:GUEST-PORT[/tcp|/udp]; without an address, 127.0.0.1. BadInput."""
    match = _PUBLISH.fullmatch(text)
    protocol = (match["protocol"] or "tcp") if match is not None else ""
    if match is None or protocol not in ("tcp", "udp"):
        raise BadInput(f"--publish {text}: give [ADDRESS:]PORT:GUEST-PORT[/udp], such as 8080:80")
    ports = int(match["port"]), int(match["guest"])
    if not all(0 < port < 65536 for port in ports):
        raise BadInput(f"--publish {text}: a port is a number from 1 to 65535")
    address = "127.0.0.1" if match["address"] is None else match["address"].strip("[]")
    try:
        found = ipaddress.ip_address(address)
    except ValueError:
        raise BadInput(f"--publish {text}: {address!r} is no IP address of this host") from None
    if found.version == 6:
        raise BadInput(f"--publish {text}: ports are published on IPv4 addresses only; 0.0.0.0 is all of them")
    return Published(protocol, str(found), *ports)


def check(kind: str, name: str, *, mac: str, queues: int, mtu: int, loopback: bool, publish: Sequence[str]) -> None:
    """Raise BadInput, in one line, for what can't be."""
    option = f"--net {kind}"
    if kind in NAMED and not name:
        raise BadInput(f"{option}: give its name, as {option}={'/path' if kind == 'socket' else 'NAME'}")
    if kind not in NAMED and name:
        raise BadInput(f"{option}={name}: {kind} has no name")
    if kind in ("tap", "bridge"):
        from kvmkit.net import interface

        interface.check_name(name, f"{option}=")
    elif kind == "network":
        check_network(name)
    elif kind == "switch":
        from kvmkit.net import switch_process

        switch_process.check_name(name)
    elif kind == "socket" and len(name.encode()) > LONGEST_PATH:
        raise BadInput(f"{option}={name}: a socket's path has up to {LONGEST_PATH} bytes")
    if mac:
        parse_mac(mac)
    if not 0 <= queues <= MOST_PAIRS or (queues > 1 and kind not in SEVERAL_QUEUES):
        most = MOST_PAIRS if kind in SEVERAL_QUEUES else 1
        raise BadInput(f"{option}: queues={queues}: {kind} has up to {most}")
    if mtu and not 68 <= mtu <= 65535:
        raise BadInput(f"{option}: mtu={mtu}: 68 to 65535 can be")
    if kind != "user" and loopback:
        raise BadInput(f"{option}: loopback goes with --net user")
    if kind != "user" and publish:
        raise BadInput(f"--publish goes with --net user: by {kind} the guest is reached at its own address")
    seen: dict[tuple[str, str, int], str] = {}
    for text in publish:
        found = parse_publish(text)
        if (found.protocol, found.address, found.port) in seen:
            raise BadInput(f"--publish {text}: port {found.port} is published twice")
        seen[found.protocol, found.address, found.port] = text


MOST_NETWORK_NAME = 11
BRIDGE_PREFIX = "kvm-"


def check_network(name: str) -> None:
    """Of a network that `kvmkit network create` makes: its bridge is named after it."""
    if not 0 < len(name) <= MOST_NETWORK_NAME or not re.fullmatch(r"[a-z0-9][a-z0-9-]*", name, re.ASCII):
        raise BadInput(f"network={name}: a network's name is small letters, digits and -, up to {MOST_NETWORK_NAME}")
