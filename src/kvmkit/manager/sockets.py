"""The sockets of a VM's devices, in its directory; and the agent's second channel, which comes by one of them."""

from __future__ import annotations

import os
import socket
import zlib
from typing import TYPE_CHECKING

import msgspec

from kvmkit.errors import BadInput
from kvmkit.guest.protocol import HOST_PORT
from kvmkit.manager import wire
from kvmkit.manager.wire import NotRunning
from kvmkit.virtio.listening import listen

if TYPE_CHECKING:
    from kvmkit.guest.client import AgentClient
    from kvmkit.machine import MachineSpec
    from kvmkit.manager.home import Home
    from kvmkit.manager.server import Server

NAME = "vsock.sock"
PARAMETER = "kvmkit.vsock"
"""The kernel parameter that has the agent connect by vsock."""


def placed(spec: MachineSpec, home: Home) -> MachineSpec:
    """The spec with its devices' sockets in the VM's directory, and a CID that goes with its name."""
    if spec.console_ports:
        ports = tuple(
            port if port.path else msgspec.structs.replace(port, path=wire.address(home.directory, f"{port.name}.port"))
            for port in spec.console_ports
        )
        spec = msgspec.structs.replace(spec, console_ports=ports)
    own = spec.vsock
    if own is None or own.path:
        return spec
    cid = own.cid or 3 + zlib.crc32(home.name.encode()) % 0x7FFFFFF0
    # By the directory's descriptor: it stays right when the VM is renamed, and fits a socket's address.
    own = msgspec.structs.replace(own, cid=cid, path=wire.address(home.directory, NAME), reserved=(HOST_PORT,))
    return msgspec.structs.replace(spec, vsock=own)


def port_path(home: Home, name: str) -> str:
    """The socket of a console port of a VM that runs. BadInput when it has none of that name; NotRunning."""
    from kvmkit.guest.qga import PORT
    from kvmkit.manager import control, spec

    if not home.running():
        raise NotRunning(f"{home.name} is not running: {control.told(home)}")
    given = home.spec()
    for port in given.console_ports:
        if port.name == name:
            return port.path or wire.address(home.directory, f"{name}.port")
    if name == PORT and spec.is_disk(given.image):
        return wire.address(home.directory, f"{name}.port")
    raise BadInput(f"{home.name} has no port {name}: give it --console-port {name} at its start")


class AgentSocket:
    """Takes the agent's connections by vsock, and gives them to the client."""

    def __init__(self, path: str, client: AgentClient, server: Server) -> None:
        self._client = client
        self._path = f"{path}_{HOST_PORT}"
        self._listener = socket.socket(fileno=listen(self._path, "vsock"))
        self._server = server
        server.watch(self._listener.fileno(), lambda events: self._accept())

    def _accept(self) -> None:
        try:
            connection, _ = self._listener.accept()
        except OSError:
            return
        if wire.peer_pid(connection) != os.getpid():  # what the guest connects to comes from this process's device
            connection.close()
            return
        self._client.attach(connection.fileno(), connection.close)

    def close(self) -> None:
        self._server.forget(self._listener.fileno())
        self._listener.close()
        try:
            os.unlink(self._path)
        except OSError:
            pass
