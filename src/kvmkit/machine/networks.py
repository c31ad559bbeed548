"""What a card of the spec's is connected to: opened before the guest starts, closed behind its device."""

from __future__ import annotations

import os
import socket
import threading
from collections.abc import Callable
from typing import TYPE_CHECKING

from kvmkit.errors import BadInput, HostError, KvmkitError

if TYPE_CHECKING:
    from kvmkit.machine.network import Network
    from kvmkit.net.backend import Backend
    from kvmkit.net.passt import Passt
    from kvmkit.net.policy import FramePolicy
    from kvmkit.virtio.net import Net

MAC_PREFIX = "52:6b"
"""Locally administered; the rest is random."""
MOST_STARTS = 20
RESTART_SECONDS = 0.2
"""Between the end of a passt and the start of the next, so that one that can't work costs little."""


def default_mac() -> str:
    return ":".join([MAC_PREFIX, *(f"{byte:02x}" for byte in os.urandom(4))])


def next_mac(mac: str, number: int) -> str:
    """The address of a VM's card `number`, counted from 0, when the first has `mac`."""
    head, _, tail = mac.rpartition(":")
    return f"{head}:{(int(tail, 16) + number) % 256:02x}"


def policy_of(network: Network, text: str) -> FramePolicy:
    """The policy `text` for a card. BadInput."""
    from kvmkit.net.options import parse_publish
    from kvmkit.net.passt import nameserver
    from kvmkit.net.policy import FramePolicy

    published = [parse_publish(ports) for ports in network.publish]
    answering = tuple(each.guest_port for each in published if each.protocol == "tcp")
    return FramePolicy(text, nameserver=nameserver() if network.kind == "user" else "", answering=answering)


class Connection:
    """`backend` is the device's to close; `close` comes after that. `mtu` 0: not known."""

    def __init__(self, backend: Backend, mtu: int = 0) -> None:
        self.backend = backend
        self.mtu = mtu

    def lost(self, card: Net, log: Callable[[str], None] | None) -> Callable[[str], None]:
        """What to do, on a lane's thread, when the other end has gone."""

        def tell(why: str) -> None:
            if log is not None:
                log(f"{card.name}: the guest has no network any more: {why}")

        return tell

    def close(self) -> None: ...


class UserConnection(Connection):
    """By passt, which ends with it, and is started again when it ends before that."""

    def __init__(self, network: Network) -> None:
        from kvmkit.net.passt import MTU
        from kvmkit.net.stream import StreamBackend

        self._network = network
        self._over = threading.Event()
        self._restarting: threading.Thread | None = None
        self._starts = 1
        self.passt = self._start()
        super().__init__(StreamBackend(self.passt.socket, "passt"), MTU)

    def _start(self) -> Passt:
        from kvmkit.net.options import parse_mac, parse_publish
        from kvmkit.net.passt import Passt

        network = self._network
        started = Passt([parse_publish(text) for text in network.publish], loopback=network.loopback)
        started.introduce(parse_mac(network.mac))
        return started

    def lost(self, card: Net, log: Callable[[str], None] | None) -> Callable[[str], None]:
        def tell(why: str) -> None:
            self._restarting = threading.Thread(target=self._again, args=(card, log, why), name="passt", daemon=True)
            self._restarting.start()

        return tell

    def _again(self, card: Net, log: Callable[[str], None] | None, why: str) -> None:
        """On a thread of its own: a lane waits for nothing."""
        from kvmkit.net.stream import StreamBackend

        said = self.passt.why()
        told = f"{card.name}: passt ended{f' ({said})' if said else ''}"
        self.passt.close()
        if self._starts == MOST_STARTS or self._over.wait(RESTART_SECONDS):
            if log is not None and not self._over.is_set():
                log(f"{told}; the guest has no network any more")
            return
        self._starts += 1
        try:
            self.passt = self._start()
        except (KvmkitError, OSError) as error:
            if log is not None:
                log(f"{told}, and {error}; the guest has no network any more")
            return
        if log is not None:
            log(f"{told}; it is started again, without the connections it had")
        card.replace_backend(StreamBackend(self.passt.socket, "passt"))

    def close(self) -> None:
        self._over.set()
        if self._restarting is not None:
            self._restarting.join()
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
