"""Persistent memory of a machine, as plain data."""

from __future__ import annotations

import msgspec

from kvmkit.errors import BadInput

MOST_PMEM = 5
"""With RAM's two and the rings', all that a vhost-user backend can be told of."""


class Pmem(msgspec.Struct, frozen=True, kw_only=True, omit_defaults=True, forbid_unknown_fields=True):
    """A file whose bytes are the guest's /dev/pmem0; `readonly`: what the guest writes is lost at its end."""

    path: str
    readonly: bool = False

    def check(self) -> int:
        """Its bytes. Raises BadInput, in one line, for what can't be; the file is looked at, and let go again."""
        from kvmkit.virtio.pmem import open_file

        file = open_file(self.path, readonly=self.readonly)
        file.close()
        return file.size


def parse_pmem(text: str) -> Pmem:
    """A Pmem of PATH[,ro]; a comma in PATH is written twice. Raises BadInput."""
    path, *options = (part.replace("\0", ",") for part in text.replace(",,", "\0").split(","))
    if not path or options not in ([], ["ro"]):
        raise BadInput(f"--pmem {text}: give a path, and nothing but ro behind it, such as --pmem disk.raw,ro")
    return Pmem(path=path, readonly=bool(options))
