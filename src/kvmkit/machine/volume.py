"""Directories of the host's that a guest shares, as plain data."""

from __future__ import annotations

import os
import re
from urllib.parse import quote

import msgspec

from kvmkit.errors import BadInput

TAG = "kvmkit"
LONGEST_TAG = 36
"""Bytes (virtio 1.2, 5.11.4)."""
_TAG = re.compile(r"[\w./-]+", re.ASCII)
MOST_VOLUMES = 16
MOST_PARAMETER = 600
"""Bytes: a kernel command line has 2048 on a PC."""


class Volume(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """`host`, a directory, at `guest` in the guest. Without `tag` the first one's is kvmkit0, the next one's kvmkit1.

    With `tag` alone, nobody mounts it for the guest: `mount -t virtiofs TAG /mnt`.
    """

    host: str
    guest: str = ""
    readonly: bool = False
    tag: str = ""

    def check(self) -> None:
        """Raise BadInput, in one line, for what can't be."""
        where = f"--volume {self.host}:{self.guest}"
        parts = self.guest.split("/")
        whole = self.guest.startswith("/") and ".." not in parts and any(part not in ("", ".") for part in parts)
        if self.tag and (len(self.tag.encode()) > LONGEST_TAG or not _TAG.fullmatch(self.tag)):
            raise BadInput(f"{where}: tag {self.tag!r}: up to {LONGEST_TAG} letters, digits and any of _.-/")
        if not whole and (self.guest or not self.tag):
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

    def tagged(self, number: int) -> str:
        """The tag it has as the volume of that number."""
        return self.tag or f"{TAG}{number}"

    def parameter(self, number: int) -> str:
        """The kernel parameter by which the default guest finds and mounts it; "" for one that it is not to mount."""
        if not self.guest:
            return ""
        return f"kvmkit.volume={self.tagged(number)}:{quote(self.guest)}{':ro' if self.readonly else ''}"


def parse_volume(text: str) -> Volume:
    """A Volume of HOST:GUEST[:ro]. Raises BadInput."""
    rest, readonly = (text[:-3], True) if text.endswith(":ro") else (text, False)
    host, colon, guest = rest.rpartition(":")
    if not colon or not host or not guest:
        raise BadInput(f"--volume {text}: give HOST:GUEST or HOST:GUEST:ro, such as .:/work")
    volume = Volume(host=os.path.abspath(host), guest=guest, readonly=readonly)
    volume.check()
    return volume
