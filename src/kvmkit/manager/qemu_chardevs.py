"""QEMU's -chardev: what stands behind serial ports, ports of virtio-serial and vhost-user devices."""

from __future__ import annotations

from typing import Literal

import msgspec

from kvmkit.errors import BadInput
from kvmkit.machine.spec import ConsolePort
from kvmkit.manager.description import Serial
from kvmkit.manager.qemu_options import Pairs, refuse

CONSOLE = "hvc0"
"""The name of the port that is a console."""

Kind = Literal["stdio", "file", "pty", "unix", "null"]
KINDS: dict[str, Kind] = {"stdio": "stdio", "file": "file", "pty": "pty", "socket": "unix", "null": "null"}


class Chardev(msgspec.Struct, frozen=True):
    """`server`: the socket is made by the VMM, and others connect to it."""

    kind: Kind
    path: str = ""
    server: bool = False


class Chardevs:
    """Those of one command line, by their ids; each has one user."""

    def __init__(self) -> None:
        self.found: dict[str, Chardev] = {}
        self.used: set[str] = set()

    def add(self, argument: str) -> None:
        pairs = Pairs("chardev", argument, "backend")
        backend, id = pairs.need("backend"), pairs.need("id")
        kind = KINDS.get(backend)
        if kind is None:
            raise refuse(f"-chardev {backend}", f"it has {', '.join(KINDS)}")
        server = pairs.flag("server") or pairs.flag("wait")  # nowait reads as wait=off
        if backend == "socket":
            if pairs.get("host") or pairs.get("port"):
                raise refuse("-chardev socket by TCP", "use a UNIX socket: path=PATH")
            pairs.ignore("wait", "reconnect", "reconnect-ms", "abstract", "tight")
        path = pairs.need("path") if kind in ("file", "unix") else ""
        pairs.ignore("mux", "signal", "append", "logappend", "path")
        pairs.finish()
        if id in self.found:
            raise BadInput(f"qemu -chardev {argument}: id={id} is there already")
        self.found[id] = Chardev(kind, path, server)

    def take(self, id: str, option: str) -> Chardev:
        """Raises BadInput when there is none, or another device has it."""
        if id not in self.found:
            raise BadInput(f"qemu {option}: no -chardev has id={id}")
        if id in self.used:
            raise BadInput(f"qemu {option}: the -chardev {id} has a user already")
        self.used.add(id)
        return self.found[id]

    def serial(self, id: str, option: str) -> Serial:
        found = self.take(id, option)
        if found.kind == "unix" and not found.server:
            raise refuse(f"{option} on a socket that it connects to", "one of ours is made: server=on,wait=off")
        return Serial(kind=found.kind, path=found.path)

    def port(self, name: str, id: str, option: str) -> ConsolePort:
        """A port of virtio-serial: its other side is a UNIX socket, which is ours."""
        found = self.take(id, option)
        if found.kind != "unix" or not found.server:
            raise refuse(f"{option} on anything but a socket of its own", "socket,path=PATH,server=on,wait=off")
        return ConsolePort(name=name, path=found.path)

    def backend(self, id: str, option: str) -> str:
        """The socket of a vhost-user backend, which listens there."""
        found = self.take(id, option)
        if found.kind != "unix" or found.server:
            raise refuse(f"{option} on anything but the backend's socket", "-chardev socket,id=ID,path=PATH")
        return found.path
