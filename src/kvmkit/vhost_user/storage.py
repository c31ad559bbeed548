"""qemu-storage-daemon, which serves disks that are not raw files: qcow2, LUKS, VMDK, VHDX, VDI, NBD, iSCSI, Ceph."""

from __future__ import annotations

import json
import os
from typing import Any
from urllib.parse import parse_qs, unquote, urlsplit

from kvmkit.block.formats import Layer, layers, remote
from kvmkit.block.holder import locked_image, opener
from kvmkit.errors import BadInput, HostError
from kvmkit.packages import how

from .daemon import Daemon, find

PORTS = {"nbd": 10809, "iscsi": 3260}


class StorageDaemon(Daemon):
    def why(self) -> str:
        """The last line it said; of an image that is in use, by whom."""
        said = super().why()
        if not (image := locked_image(said)):
            return said
        return f"{os.path.basename(image)} is in use by {opener(image)}; end that first"


def program() -> str:
    """Where it is. HostError, with the command that installs it, when it is not there."""
    found = find("qemu-storage-daemon", ("/usr/libexec/qemu-storage-daemon",))
    if not found:
        raise HostError(
            f"a disk that is not raw needs qemu-storage-daemon, which is not installed: {how('qemu-storage-daemon')}"
        )
    return found


def check(path: str, format: str, *, key: str = "", backing: str = "") -> None:
    """Raise BadInput or HostError, in one line, for a disk that `make` could not serve; as far as one sees it."""
    chain = _chain(path, format, backing)
    where = f"disk {path}"
    if any(layer.encrypted for layer in chain) and not key:
        raise BadInput(f"{where}: is encrypted: add key=FILE, a file that holds the passphrase and no line's end")
    if key and not any(layer.encrypted for layer in chain):
        raise BadInput(f"{where}: key={key}: it is not encrypted")
    if key and not os.access(key, os.R_OK):
        raise BadInput(f"{where}: key={key}: is not there, or you may not read it")
    for layer in chain:
        if not remote(layer.path) and not os.path.exists(layer.path):
            raise BadInput(f"{where}: {layer.path} is not there")
    _nodes(chain, readonly=True, direct=False, key=bool(key))
    program()


def make(
    path: str, format: str, *, queues: int, readonly: bool, direct: bool = False, key: str = "", backing: str = ""
) -> StorageDaemon:
    """A process that will serve the disk at `path` with `queues` queues."""
    nodes = _nodes(_chain(path, format, backing), readonly=readonly, direct=direct, key=bool(key))
    own = program()

    def arguments(listener: int) -> list[str]:
        found = [own]
        if key:
            found += ["--object", json.dumps({"qom-type": "secret", "id": "key", "file": key})]
        for node in nodes:
            found += ["--blockdev", json.dumps(node)]
        export = {
            "type": "vhost-user-blk",
            "id": "disk",
            "node-name": nodes[-1]["node-name"],
            "addr": {"type": "fd", "str": str(listener)},
            "writable": not readonly,
            "num-queues": queues,
        }
        return [*found, "--export", json.dumps(export)]

    return StorageDaemon(f"disk {path}", arguments)


def _chain(path: str, format: str, backing: str) -> list[Layer]:
    if remote(path):
        return [Layer(path, format, format == "luks")]  # what a qcow2 image elsewhere is based on is not looked at
    return layers(path, format, backing)


def _nodes(chain: list[Layer], *, readonly: bool, direct: bool, key: bool) -> list[dict[str, Any]]:
    """QEMU's block nodes, the lowest layer's first. Only the top one is written."""
    found: list[dict[str, Any]] = []
    below: str | None = None
    for number, layer in reversed(list(enumerate(chain))):
        only = readonly or number > 0
        common = {"read-only": only, "discard": "unmap", "cache": {"direct": direct, "no-flush": False}}
        file = {"node-name": f"file{number}", **common, **_place(layer.path)}
        found.append(file)
        if layer.format == "raw" and number == 0:
            continue
        node: dict[str, Any] = {
            "driver": layer.format,
            "node-name": f"disk{number}",
            "file": file["node-name"],
            **common,
        }
        if layer.format == "qcow2":
            node["backing"] = below
        if layer.encrypted and key:
            node |= (
                {"key-secret": "key"}
                if layer.format == "luks"
                else {"encrypt": {"format": "luks", "key-secret": "key"}}
            )
        found.append(node)
        below = node["node-name"]
    return found


def _place(path: str) -> dict[str, Any]:
    """Where the bytes are. Source: QEMU's qapi/block-core.json."""
    protocol = remote(path)
    if not protocol:
        is_device = not os.path.isfile(path)
        return {"driver": "host_device" if is_device else "file", "filename": os.path.abspath(path)}
    try:
        url = urlsplit(path)
        host, port = url.hostname or "", url.port
    except ValueError as error:
        raise BadInput(f"disk {path}: {error}") from None
    parts = [unquote(part) for part in url.path.split("/") if part]
    if protocol == "nbd+unix":
        socket = parse_qs(url.query).get("socket", [""])[0]
        if not socket:
            raise BadInput(f"disk {path}: give nbd+unix:///NAME?socket=PATH")
        return _nbd({"type": "unix", "path": os.path.abspath(socket)}, "/".join(parts))
    if protocol == "rbd":
        if not host or not parts:
            raise BadInput(f"disk {path}: give rbd://POOL/IMAGE")
        return {"driver": "rbd", "pool": url.netloc, "image": "/".join(parts)}
    if not host:
        raise BadInput(f"disk {path}: names no host")
    number = str(port or PORTS[protocol])
    if protocol == "nbd":
        return _nbd({"type": "inet", "host": host, "port": number}, "/".join(parts))
    if len(parts) != 2 or not parts[1].isdigit():
        raise BadInput(f"disk {path}: give iscsi://HOST[:PORT]/TARGET/LUN")
    return {
        "driver": "iscsi",
        "transport": "tcp",
        "portal": f"{host}:{number}",
        "target": parts[0],
        "lun": int(parts[1]),
    }


def _nbd(server: dict[str, str], export: str) -> dict[str, Any]:
    return {"driver": "nbd", "server": server, "export": export, "reconnect-delay": 30}
