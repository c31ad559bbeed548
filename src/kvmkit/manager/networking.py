"""A VM's network cards: the default one, their addresses, and what the guest's agent is told of them."""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import msgspec

from kvmkit.errors import BadInput, KvmkitError
from kvmkit.machine.network import Network
from kvmkit.machine.networks import default_mac, next_mac


def settled(networks: Sequence[Network] | None, mac: str, *, alone: bool) -> tuple[Network, ...]:
    """The cards, each with its address. `mac`: the first one's. `alone`: the guest is a kernel of the user's own."""
    if networks is None:
        networks = () if alone else default()
    mac = mac or default_mac()
    return tuple(
        each if each.mac else msgspec.structs.replace(each, mac=next_mac(mac, number))
        for number, each in enumerate(networks)
    )


def check(networks: Sequence[Network] | None, policy: str, mac: str) -> None:
    """Raise BadInput, in one line, for what can't be."""
    if policy:
        from kvmkit.net.policy import FramePolicy

        FramePolicy(policy)
        if networks is not None and not networks:
            raise BadInput(f"--policy {policy}: there is no network card for it: leave --net none away")
    if mac:
        from kvmkit.net.options import parse_mac

        parse_mac(mac)


def default() -> tuple[Network, ...]:
    """Where nothing was said: one by passt, where that is installed and the host has a network."""
    from kvmkit.net import passt

    return (Network(kind="user", optional=True),) if passt.find() is not None and has_route() else ()


def has_route() -> bool:
    """Whether this host reaches more than itself by IPv4; without that passt does not start."""
    try:
        with open("/proc/net/route", encoding="ascii") as routes:
            return any(line.split("\t", 2)[1:2] == ["00000000"] for line in routes)
    except OSError:
        return False


def missing() -> str:
    """What to tell of a default network that there is none of; "" after the first time."""
    from kvmkit.net import passt
    from kvmkit.packages import how
    from kvmkit.paths import cache_dir

    if passt.find() is not None:
        return ""
    told = cache_dir() / "no-passt"
    if told.exists():
        return ""
    told.touch()
    return f"the guest has no network; for one: {how('passt')} (this is said once; --net none is silent)"


class Address(NamedTuple):
    """What the agent gives a card."""

    address: str
    prefix: int
    gateway: str = ""
    nameserver: str = ""


def address(network: Network) -> Address | None:
    """The address that a card has in a guest with kvmkit's agent; None: it asks there, or has none."""
    if network.kind == "user":
        from kvmkit.net import passt

        return Address(passt.ADDRESS, passt.PREFIX, passt.GATEWAY, passt.nameserver())
    if network.kind == "switch":
        # Link-local (RFC 3927), so that VMs meet without being told; from the card's own address, as nobody deals.
        last = bytes.fromhex(network.mac.replace(":", ""))
        return Address(f"169.254.{1 + last[4] % 254}.{1 + last[5] % 254}", 16)
    if network.kind == "network" and network.mac:
        from kvmkit.net.lan import state

        lan = state.need(network.name)
        return Address(state.lease(network.name, network.mac).address, lan.network.prefixlen, lan.gateway, lan.gateway)
    return None


def announce(networks: Sequence[Network], vm: str) -> None:
    """Have the others on its networks find a VM by its name."""
    for each in networks:
        if each.kind == "network":
            from kvmkit.net.lan import state

            state.announce(each.name, each.mac, vm)


def release(networks: Sequence[Network]) -> None:
    """Give its addresses back."""
    for each in networks:
        if each.kind == "network":
            from kvmkit.net.lan import state

            try:
                state.release(each.name, each.mac)
            except (OSError, KvmkitError):
                pass  # the network has gone before


def parameters(networks: Sequence[Network]) -> list[str]:
    """Words for the kernel's command line, which the agent in the guest reads. See agent/network.c."""
    words = []
    for number, network in enumerate(networks):
        card = f"eth{number}"
        found = address(network)
        if found is not None:
            parts = (f"kvmkit.ip={card}", f"{found.address}/{found.prefix}", found.gateway, found.nameserver)
            words.append(":".join(part for part in parts if part))
        elif network.kind in ("bridge", "network", "tap"):
            words.append(f"kvmkit.ip={card}:dhcp")
        else:
            words.append(f"kvmkit.ip={card}:up")
    return words


def addresses(networks: Sequence[Network]) -> list[str]:
    """Those that are known without asking the guest."""
    return [found.address for each in networks if each.mac and (found := address(each)) is not None]
