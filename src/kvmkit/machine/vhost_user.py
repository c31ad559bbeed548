"""Devices of a machine that other processes serve, as plain data."""

from __future__ import annotations

from typing import TYPE_CHECKING, Literal

import msgspec

from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.virtio.vhost_user.kinds import Kind


class VhostUser(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A device that a vhost-user backend serves at `socket`.

    `tag` is for fs, `mac` for net, `queues` for blk, scsi and generic, `id` (the virtio device ID) and `config` (bytes
    of configuration space) for generic.
    """

    kind: Literal["blk", "fs", "net", "scsi", "gpu", "generic"]
    socket: str
    tag: str = ""
    mac: str = ""
    queues: int = 0
    id: int = 0
    config: int = 0

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be. Whether a backend listens is seen when it is used."""
        self.made()

    def made(self) -> Kind:
        from kvmkit.virtio.vhost_user import kinds

        fields = ("tag", "mac", "queues", "id", "config")
        options = {name: str(value) for name in fields if (value := getattr(self, name))}
        try:
            return kinds.parse(self.kind, options)
        except BadInput as error:
            raise BadInput(f"--vhost-user {self.kind}={self.socket}: {error}") from None


def parse_vhost_user(text: str) -> VhostUser:
    """A VhostUser of KIND=SOCKET[,tag=T][,mac=M][,queues=N][,id=N][,config=N]. Raises BadInput."""
    first, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    kind, equals, path = first.partition("=")
    if not equals or not path:
        raise BadInput(f"--vhost-user {text}: give a kind and a socket, such as --vhost-user blk=/run/disk.sock")
    given: dict[str, str | int] = {}
    for option in options:
        key, _equals, value = option.partition("=")
        if key in ("tag", "mac") and value:
            given[key] = value
        elif key in ("queues", "id", "config") and value.isascii() and value.isdigit():
            given[key] = int(value[:9])
        else:
            known = "tag=NAME, mac=ADDRESS, queues=N, id=N and config=N"
            raise BadInput(f"--vhost-user {text}: no option {option!r}; there are {known}")
    try:
        device = msgspec.convert({"kind": kind, "socket": path, **given}, VhostUser)
    except msgspec.ValidationError:
        raise BadInput(
            f"--vhost-user {text}: no kind {kind!r}; there are blk, fs, net, scsi, gpu and generic"
        ) from None
    device.check()
    return device
