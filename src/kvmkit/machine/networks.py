"""What a card of the spec's is connected to: opened before the guest starts, closed behind its device."""

from __future__ import annotations

import os
import socket
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput, HostError

if TYPE_CHECKING:
    from kvmkit.machine.network import Network
    from kvmkit.net.backend import Backend
    from kvmkit.net.policy import FramePolicy
    from kvmkit.virtio.net import Net

MAC_PREFIX = "52:6b"
"""Locally administered; the rest is random."""


def default_mac() -> str:
    return ":".join([MAC_PREFIX, *(f"{byte:02x}" for byte in os.urandom(4))])


def next_mac(mac: str, number: int) -> str:
    """The address of a VM's card `number`, counted from 0, when the first has `mac`."""
    head, _, tail = mac.rpartition(":")
    return f"{head}:{(int(tail, 16) + number) % 256:02x}"


def policy_of(network: Network, text: str) -> FramePolicy:
    """The policy `text` for a card. BadInput."""
    from kvmkit.net.options import parse_publish
    from kvmkit.net.passt import NAMESERVER
    from kvmkit.net.policy import FramePolicy

    published = [parse_publish(ports) for ports in network.publish]
    answering = tuple(each.guest_port for each in published if each.protocol == "tcp")
    return FramePolicy(text, nameserver=NAMESERVER if network.kind == "user" else "", answering=answering)


class Connection:
    """`backend` is the device's to close; `close` comes after that. `mtu` 0: not known."""

    def __init__(self, backend: Backend, mtu: int = 0) -> None:
        self.backend = backend
        self.mtu = mtu

    def lost(self, card: Net, log: Callable[[str], None] | None) -> Callable[[str], None]:
        """What to do, on a lane's thread, when the other end has gone."""

        def tell(why: str) -> None:
            if log is not None:
                log(f"{card.name}: the guest has no network any more: {self.reason() or why}")

        return tell

    def reason(self) -> str:
        return ""

    def close(self) -> None: ...


class UserConnection(Connection):
    """By passt, which ends with it."""

    def __init__(self, network: Network) -> None:
        from kvmkit.net.options import parse_publish
        from kvmkit.net.passt import MTU, Passt
        from kvmkit.net.stream import StreamBackend

        self.passt = Passt([parse_publish(text) for text in network.publish], loopback=network.loopback)
        super().__init__(StreamBackend(self.passt.socket, "passt"), MTU)
        self.passt.introduce(bytes.fromhex(network.mac.replace(":", "")))

    def reason(self) -> str:
        return f"passt ended: {self.passt.why()}" if self.passt.why() else ""

    def close(self) -> None:
        self.passt.close()


def connect(network: Network, cpus: int) -> Connection:
    """Open it. BadInput, HostError in one line, with the command that helps."""
    from kvmkit.net.stream import StreamBackend

    if network.kind == "user":
        return UserConnection(network)
    if network.kind == "socket":
        return Connection(StreamBackend(_dial(network.name)))
    if network.kind == "switch":
        from kvmkit.net import switch_process

        return Connection(StreamBackend(switch_process.connect(network.name)))
    if network.kind == "none":
        from kvmkit.net.backend import Backend

        return Connection(Backend("nothing"))
    return _tap(network, network.queues or min(cpus, 8))


def _dial(path: str) -> socket.socket:
    dialled = socket.socket(socket.AF_UNIX, socket.SOCK_STREAM)
    try:
        dialled.connect(path)
    except OSError as error:
        dialled.close()
        what = "nobody listens there" if isinstance(error, ConnectionRefusedError) else error.strerror
        raise BadInput(f"--net socket={path}: {what}; start passt -s {path}, or the like, first") from None
    return dialled


def _tap(network: Network, pairs: int) -> Connection:
    from kvmkit.net import interface
    from kvmkit.net.options import BRIDGE_PREFIX
    from kvmkit.net.tap import TapBackend

    if network.kind == "tap":
        there = interface.exists(network.name)
        tap = TapBackend(network.name, pairs=pairs)
        try:
            interface.set_up(tap.name)
        except OSError as error:
            if not there:
                tap.close()
                raise HostError(f"tap={network.name}: can't bring it up: {error.strerror}") from None
        return Connection(tap, tap.mtu)
    bridge = BRIDGE_PREFIX + network.name if network.kind == "network" else network.name
    if network.kind == "network" and not interface.is_bridge(bridge):
        raise BadInput(f"--net network={network.name}: there is none: sudo kvmkit network create {network.name}")
    tap = TapBackend("kvmkit%d", pairs=pairs)
    try:
        interface.add_to_bridge(bridge, tap.name)
    except BaseException:
        tap.close()
        raise
    return Connection(tap, interface.interface_mtu(bridge))
