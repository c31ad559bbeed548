"""Keys to enrol: sets that virt-firmware carries, by name, and those of a user's own files."""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path
from typing import NamedTuple

from kvmkit.errors import BadInput
from kvmkit.secureboot import certificates, files, signatures
from kvmkit.secureboot.signatures import Signature, Update

SETS = {"redhat": "enroll_platform_redhat", "microsoft": "enroll_platform_microsoft"}
"""By whose platform key it is, and what virt-firmware calls it. Both have Microsoft's keys in KEK and db: they start
Windows and the signed boot loader (shim) of each Linux distribution that has one."""


class Keys(NamedTuple):
    """What is to be put into the four variables. Without `pk`, the platform key that is there stays."""

    pk: tuple[Signature, ...] = ()
    kek: tuple[Signature, ...] = ()
    db: tuple[Signature, ...] = ()
    dbx: Update | None = None
    new_platform: bool = False
    """KEK is to be these alone."""


def named(name: str) -> Keys:
    """The set of that name: what `virt-fw-vars --enroll-NAME` puts into an empty store. BadInput, HostError."""
    if name not in SETS:
        raise BadInput(f"no set of keys {name!r}: there are {' and '.join(SETS)}")
    variables = certificates.library("virt.firmware.efi.efivar").EfiVarList()
    getattr(variables, SETS[name])()
    variables.add_microsoft_keys()

    def held(database: str) -> tuple[Signature, ...]:
        return tuple(signatures.parse(variables[database].data, f"virt-firmware's {database} of {name}"))

    return Keys(held("PK"), held("KEK"), held("db"), new_platform=True)


def collected(
    sets: Iterable[str] = (),
    *,
    pk: Path | None = None,
    kek: Iterable[Path] = (),
    db: Iterable[Path] = (),
    dbx: Path | None = None,
) -> Keys:
    """Sets and files together, in that order; of several platform keys it is the file's, else the first set's.

    BadInput, with the file's name; HostError: virt-firmware is not installed.
    """
    found = Keys()
    for name in dict.fromkeys(sets):
        more = named(name)
        found = Keys(found.pk or more.pk, found.kek + more.kek, found.db + more.db, new_platform=True)
    own = certificates.from_file(pk) if pk is not None else list(found.pk)
    if len(own) > 1:
        raise BadInput(f"{pk}: has {len(own)} certificates; the platform key is one")
    return Keys(
        tuple(own),
        found.kek + tuple(one for path in kek for one in certificates.from_file(path)),
        found.db + tuple(one for path in db for one in certificates.from_file(path)),
        signatures.parse_update(files.read(dbx), str(dbx)) if dbx is not None else None,
        found.new_platform,
    )
