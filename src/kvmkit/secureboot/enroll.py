"""Put keys into a variable store, turn Secure Boot on and off, take the keys out again.

Each is a function from an image's bytes to those of a changed one, as long as it was. `what` names it in messages.
"""

from __future__ import annotations

from collections.abc import Sequence
from datetime import UTC, datetime

from kvmkit.errors import BadInput
from kvmkit.secureboot import certificates, signatures
from kvmkit.secureboot.keys import Keys
from kvmkit.secureboot.signatures import Signature
from kvmkit.secureboot.variables import CUSTOM_MODE, DATABASES, DB, DBX, KEK, PK, SECURE_BOOT_ENABLE, Variable, time_of
from kvmkit.secureboot.varstore import Store

_EPOCH = datetime(2010, 1, 1, tzinfo=UTC)
"""The time of a dbx that was never updated, as virt-fw-vars has it: earlier than each update."""


def enroll(data: bytes, keys: Keys, what: str = "the variable store") -> bytes:
    """With these keys, and Secure Boot on. What is in db and dbx stays there; KEK does where a set says nothing else.

    The same as `virt-fw-vars --secure-boot --enroll-redhat` makes of the set `redhat`. BadInput: what is there is
    damaged, there is no platform key, or they don't fit. HostError: virt-firmware is not installed.
    """
    store = Store(data, what)
    if keys.pk:
        _put(store, PK, (), keys.pk)
    _put(store, KEK, () if keys.new_platform else _held(store, KEK), keys.kek)
    _put(store, DB, _held(store, DB), keys.db)
    if keys.dbx is not None:
        _put(store, DBX, _held(store, DBX), keys.dbx.signatures, keys.dbx.when or _EPOCH)
    return _on(store)


def enable(data: bytes, what: str = "the variable store") -> bytes:
    """With Secure Boot on. BadInput: there is no platform key."""
    return _on(Store(data, what))


def disable(data: bytes, what: str = "the variable store") -> bytes:
    """With Secure Boot off; the keys stay."""
    store = Store(data, what)
    _set(store, SECURE_BOOT_ENABLE, 0)
    return store.to_bytes()


def reset(data: bytes, what: str = "the variable store") -> bytes:
    """Without keys: in setup mode, in which the guest may enrol its own."""
    store = Store(data, what)
    for variable in (*DATABASES, SECURE_BOOT_ENABLE, CUSTOM_MODE):
        store.remove(variable)
    return store.to_bytes()


def _on(store: Store) -> bytes:
    platform = store.get(PK)
    if platform is None or not platform.data:
        raise BadInput(
            f"{store.what}: has no platform key (PK), without which there is no Secure Boot: enrol keys first"
        )
    if store.get(DBX) is None:
        _put(store, DBX, (), (signatures.NOTHING,), _EPOCH)
    _set(store, SECURE_BOOT_ENABLE, 1)
    _set(store, CUSTOM_MODE, 0)
    return store.to_bytes()


def _held(store: Store, database: Variable) -> list[Signature]:
    found = store.get(database)
    return signatures.parse(found.data, f"{store.what}: {database.name}") if found else []


def _put(
    store: Store,
    database: Variable,
    held: Sequence[Signature],
    more: Sequence[Signature],
    when: datetime | None = None,
) -> None:
    """Have `held`, and what of `more` is not among it. The time is `when`, or the youngest certificate's beginning.

    It never goes back: a firmware takes no update that is older than its variable.
    """
    if not more:
        return
    wanted = list(held)
    known = {(one.kind, one.data) for one in wanted}
    for one in more:
        if (one.kind, one.data) not in known:
            wanted.append(one)
            known.add((one.kind, one.data))
    old = store.get(database) or database
    times = [when] if when else [certificates.begins(one) for one in wanted]
    latest = max((time for time in (old.when, *times) if time is not None), default=_EPOCH)
    time = old.time if latest == old.when else time_of(latest)
    store.put(old._replace(attributes=database.attributes, data=signatures.pack(wanted), time=time))


def _set(store: Store, switch: Variable, value: int) -> None:
    old = store.get(switch) or switch
    store.put(old._replace(attributes=switch.attributes, data=bytes([value])))
