"""A network card of a machine's, as plain data. What it is connected to is opened by networks.py."""

from __future__ import annotations

from typing import Any, Literal

import msgspec

from kvmkit.errors import BadInput
from kvmkit.machine.limits import KEYS, Limits, parse_limit


class Network(Limits, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A network card, and what it is connected to.

    "user": the host's own network, by passt. "tap" and "bridge": that interface of the host's. "network": one that
    `kvmkit network create` made. "socket": a UNIX stream socket, as passt and QEMU's `-netdev stream` have it.
    "switch": a switch of this user's VMs. "none": a card with nothing behind it.
    """

    kind: Literal["user", "tap", "bridge", "network", "socket", "switch", "none"]
    name: str = ""
    """The interface, the network, the switch, or the socket's path."""
    mac: str = ""
    """Its address; none: one that stays the same for each VM."""
    queues: int = 0
    """Queue pairs, where the other side can have several (tap, bridge, network); 0: one for each vCPU, up to 8."""
    mtu: int = 0
    loopback: bool = False
    """With "user": the host's loopback address is to be reached at the gateway's."""
    optional: bool = False
    """Nobody asked for it: nothing is said when the guest does not use it."""
    publish: tuple[str, ...] = ()
    """With "user": ports of the host's that lead to the guest, as [ADDRESS:]PORT:GUEST-PORT[/udp]."""

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be."""
        from kvmkit.net import options

        options.check(
            self.kind,
            self.name,
            mac=self.mac,
            queues=self.queues,
            mtu=self.mtu,
            loopback=self.loopback,
            publish=self.publish,
        )
        self.check_limits(f"--net {self.kind}")


def parse_network(text: str) -> Network:
    """A Network of KIND[=NAME][,mac=..][,queues=N][,mtu=N][,loopback]; a comma in NAME is written twice. BadInput."""
    from kvmkit.machine.spec import path_and_options

    what, options = path_and_options("--net", text)
    kind, _equals, name = what.partition("=")
    given: dict[str, Any] = {}
    for option in options:
        key, _equals, value = option.partition("=")
        if option == "loopback":
            given[key] = True
        elif key == "mac" and value:
            given[key] = value
        elif key in ("queues", "mtu") and value.isascii() and value.isdigit() and len(value) < 9:
            given[key] = int(value)
        elif (limit := parse_limit(f"--net {text}", option)) is not None:
            given[limit[0]] = limit[1]
        else:
            known = f"mac=ADDRESS, queues=N, mtu=N, loopback, {', '.join(f'{each}=N' for each in KEYS)}"
            raise BadInput(f"--net {text}: no option {option!r}; there are {known}")
    try:
        network = msgspec.convert({"kind": kind, "name": name, **given}, Network)
    except msgspec.ValidationError:
        known = "user, tap=NAME, bridge=NAME, network=NAME, socket=PATH, switch=NAME and none"
        raise BadInput(f"--net {text}: no kind {kind!r} of network; there are {known}") from None
    network.check()
    return network
