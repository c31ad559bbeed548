"""Directories of the host's that a guest shares, as plain data."""

from __future__ import annotations

import os
from urllib.parse import quote

import msgspec

from kvmkit.errors import BadInput

TAG = "kvmkit"
MOST_VOLUMES = 16
MOST_PARAMETER = 600
"""Bytes: a kernel command line has 2048 on a PC."""


class Volume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`host`, a directory, at `guest` in the guest. The first one's tag is kvmkit0, the next one's kvmkit1."""

    host: str
    guest: str
    readonly: bool = False

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be."""
        where = f"--volume {self.host}:{self.guest}"
        parts = self.guest.split("/")
        if not self.guest.startswith("/") or ".." in parts or not any(part not in ("", ".") for part in parts):
            raise BadInput(f"{where}: {self.guest!r}: where the guest has it is a whole path, such as /work, and not /")
        if "\0" in self.guest + self.host or len(quote(self.guest)) > MOST_PARAMETER:
            raise BadInput(f"{where}: the guest's path is too long or holds a null byte")
        if not os.path.isdir(self.host):
            is_there = os.path.exists(self.host)
            raise BadInput(f"{where}: {self.host}: {'is no directory' if is_there else 'is not there'}")
        if not os.access(self.host, os.R_OK | os.X_OK):
            raise BadInput(f"{where}: {self.host}: you may not read it")
        if "," in self.host:
            raise BadInput(f"{where}: {self.host}: virtiofsd can't share a directory whose name holds a comma")

    def parameter(self, number: int) -> str:
        """The kernel parameter by which the default guest finds and mounts it."""
        return f"kvmkit.volume={TAG}{number}:{quote(self.guest)}{':ro' if self.readonly else ''}"


def parse_volume(text: str) -> Volume:
    """A Volume of HOST:GUEST[:ro]. Raises BadInput."""
    rest, readonly = (text[:-3], True) if text.endswith(":ro") else (text, False)
    host, colon, guest = rest.rpartition(":")
    if not colon or not host or not guest:
        raise BadInput(f"--volume {text}: give HOST:GUEST or HOST:GUEST:ro, such as .:/work")
    volume = Volume(host=os.path.abspath(host), guest=guest, readonly=readonly)
    volume.check()
    return volume
