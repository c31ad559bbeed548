"""Signature lists: what PK, KEK, db and dbx hold.

A variable is any number of EFI_SIGNATURE_LISTs; each has signatures of one kind (certificates, SHA-256 hashes) and of
one size, and each signature says whose it is. Source: UEFI 2.10, 32.4.1.
"""

from __future__ import annotations

import hashlib
import struct
from collections.abc import Iterable
from datetime import datetime
from itertools import groupby
from typing import NamedTuple
from uuid import UUID

from kvmkit.errors import BadInput
from kvmkit.secureboot import guids
from kvmkit.secureboot.variables import NO_TIME, moment

_LIST = struct.Struct("<16sIII")
_OWNER = 16
_AUTHENTICATION = struct.Struct("<16sIHH16s")  # EFI_VARIABLE_AUTHENTICATION_2, up to the PKCS #7 data
_REVISION, _EFI_GUID = 0x0200, 0x0EF1


class Signature(NamedTuple):
    kind: UUID
    owner: UUID
    data: bytes


NOTHING = Signature(guids.CERT_SHA256, guids.OVMF_ENROLL, hashlib.sha256(b"").digest())
"""What fits no file: edk2's own enroller puts it into a dbx that would be empty, for an update to be added to."""


def parse(data: bytes, what: str) -> list[Signature]:
    """The signatures of a variable's data, in order. BadInput, with `what` and where, when they are damaged."""
    found = []
    at = 0
    while at < len(data):
        if at + _LIST.size > len(data):
            raise BadInput(f"{what}: is damaged: it ends within the signature list at {at:#x}")
        raw, list_size, header_size, size = _LIST.unpack_from(data, at)
        body = list_size - _LIST.size
        # No kind of signature that there is has a header.
        if body < 0 or at + list_size > len(data) or header_size or size <= _OWNER or body % size:
            raise BadInput(f"{what}: is damaged: the sizes of the signature list at {at:#x}")
        kind = UUID(bytes_le=raw)
        for one in range(at + _LIST.size, at + list_size, size):
            owner = UUID(bytes_le=data[one : one + _OWNER])
            found.append(Signature(kind, owner, data[one + _OWNER : one + size]))
        at += list_size
    return found


def pack(signatures: Iterable[Signature]) -> bytes:
    """Signature lists: one for each certificate, as is usual, and one for neighbouring hashes of a kind."""
    lists = []
    for (kind, length, _), group in groupby(signatures, _list_of):
        members = [one.owner.bytes_le + one.data for one in group]
        size = _OWNER + length
        lists.append(_LIST.pack(kind.bytes_le, _LIST.size + size * len(members), 0, size) + b"".join(members))
    return b"".join(lists)


def _list_of(one: Signature) -> tuple[UUID, int, bytes]:
    return one.kind, len(one.data), one.data if one.kind == guids.CERT_X509 else b""


class Update(NamedTuple):
    """What a dbx file has."""

    signatures: list[Signature]
    when: datetime | None
    """The time it was signed at."""


def parse_update(data: bytes, what: str) -> Update:
    """A signed update, as the UEFI Forum publishes them (DBXUpdate.bin), or bare signature lists. BadInput.

    The signature is not looked at: it tells a running firmware who wrote it, and here that is the user.
    """
    time = NO_TIME
    if len(data) >= _AUTHENTICATION.size:
        stamp, length, revision, certificate_type, kind = _AUTHENTICATION.unpack_from(data)
        if (revision, certificate_type, kind) == (_REVISION, _EFI_GUID, guids.CERT_PKCS7.bytes_le):
            time, data = stamp, data[16 + length :]
    signatures = parse(data, what)
    if not signatures:
        raise BadInput(f"{what}: has no signatures in it")
    return Update(signatures, moment(time))
