"""What a variable store says of Secure Boot."""

from __future__ import annotations

import hashlib
from typing import NamedTuple
from uuid import UUID

from kvmkit.secureboot import certificates, guids, signatures
from kvmkit.secureboot.variables import DATABASES, PK, SECURE_BOOT_ENABLE
from kvmkit.secureboot.varstore import Store


class Certificate(NamedTuple):
    owner: UUID
    subject: str
    """Its common name; '' for what is no certificate."""
    sha256: str


class Database(NamedTuple):
    """PK, KEK, db or dbx."""

    certificates: list[Certificate]
    hashes: int


class State(NamedTuple):
    setup_mode: bool
    """There is no platform key: whoever runs in the guest may enrol keys."""
    secure_boot: bool
    """The firmware starts only what db allows and dbx does not forbid."""
    databases: dict[str, Database]


def setup_mode(store: Store) -> bool:
    platform = store.get(PK)
    return platform is None or not platform.data


def secure_boot(store: Store) -> bool:
    """Whether it is on. A firmware with a platform key that was told nothing turns it on at its next start.

    Source: edk2's SecurityPkg/Library/AuthVariableLib, where the variable SecureBoot is made.
    """
    switch = store.get(SECURE_BOOT_ENABLE)
    return not setup_mode(store) and (switch is None or switch.data == b"\1")


def of(data: bytes, what: str = "the variable store") -> State:
    """All of it. BadInput: the store, or one of the four databases, is damaged. HostError: no virt-firmware."""
    store = Store(data, what)
    databases = {}
    for database in DATABASES:
        found = store.get(database)
        if found is not None:
            held = signatures.parse(found.data, f"{what}: {database.name}")
            x509 = [one for one in held if one.kind == guids.CERT_X509]
            shown = [Certificate(one.owner, certificates.subject(one), _digest(one.data)) for one in x509]
            databases[database.name] = Database(shown, len(held) - len(x509))
    return State(setup_mode(store), secure_boot(store), databases)


def _digest(data: bytes) -> str:
    return hashlib.sha256(data).hexdigest()
