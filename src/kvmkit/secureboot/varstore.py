"""edk2's variable store: what a VARS file, or a whole OVMF image, has at its beginning.

    firmware volume header (EFI_SYSTEM_NV_DATA_FV)     "_FVH", length, checksum, block map
      variable store header, 28 bytes                  AUTHENTICATED_VARIABLES, size, 0x5a, 0xfe
        variables, each on 4 bytes                     header of 60 bytes, name in UCS-2, data
        0xff to the store's end
      the fault-tolerant writer's area                 left alone; see pending.py

A guest writes to its own store through its firmware, and without SMM past it: every length is checked. Reading follows
edk2's own: a variable whose update was cut short counts in its old form.

Source: edk2's MdePkg/Include/Pi/PiFirmwareVolume.h, MdeModulePkg/Include/Guid/VariableFormat.h and
MdeModulePkg/Universal/Variable/RuntimeDxe/VariableParsing.c.
"""

from __future__ import annotations

import struct
from collections.abc import Iterator
from uuid import UUID

from kvmkit.errors import BadInput
from kvmkit.secureboot import guids, pending
from kvmkit.secureboot.variables import Variable

_VOLUME = struct.Struct("<16x16sQ4sIHHHxB")  # up to the block map
_STORE = struct.Struct("<16sIBBHI")
_HEADER = struct.Struct("<HBxIQ16sIII16s")

_FORMATTED, _HEALTHY = 0x5A, 0xFE
_START = 0x55AA
_ADDED = 0x3F
_REPLACED = _ADDED & 0xFE  # its successor was being written
_UNSET = 0xFFFFFFFF

Key = tuple[str, UUID]


class Store:
    """The variables of an image, and what surrounds them. Change `variables`, then ask for `to_bytes()`."""

    def __init__(self, data: bytes, what: str) -> None:
        """`what` names it in messages. BadInput: no variable store, or a damaged one."""
        self.what = what
        self._data = data
        self._start, self._end = _find(data, what)
        self.variables: dict[Key, Variable] = {}
        replaced: dict[Key, Variable] = {}
        for state, variable in self._read():
            if state == _ADDED:
                self.variables.setdefault(variable.key, variable)  # edk2, too, takes the first
            elif state == _REPLACED:
                replaced[variable.key] = variable
        for key, variable in replaced.items():
            self.variables.setdefault(key, variable)

    def get(self, like: Variable) -> Variable | None:
        """The variable of that one's name and GUID."""
        return self.variables.get(like.key)

    def put(self, variable: Variable) -> None:
        """Add it, or replace the one of its name and GUID."""
        self.variables[variable.key] = variable

    def remove(self, like: Variable) -> None:
        self.variables.pop(like.key, None)

    def to_bytes(self) -> bytes:
        """The image with these variables, as long as it was. BadInput: they don't fit."""
        packed = b"".join(_pack(self.variables[key]) for key in sorted(self.variables))
        room = self._end - self._start
        if len(packed) > room:
            raise BadInput(f"{self.what}: its variables would take {len(packed)} bytes, and it has room for {room}")
        return self._data[: self._start] + packed.ljust(room, b"\xff") + self._data[self._end :]

    def _read(self) -> Iterator[tuple[int, Variable]]:
        """Every variable that was written to its end, with its state, in order."""
        at = self._start
        while at + _HEADER.size <= self._end:
            start, state, attributes, count, time, key_index, name_size, data_size, guid = _HEADER.unpack_from(
                self._data, at
            )
            if start != _START:
                break
            name_at = at + _HEADER.size
            if state == 0xFF or _UNSET in (attributes, name_size, data_size):  # its header was being written
                name_size = data_size = 0
            data_at = name_at + name_size
            after = data_at + data_size
            if after > self._end:
                raise BadInput(f"{self.what}: is damaged: the variable at {at:#x} goes beyond the store's end")
            if state in (_ADDED, _REPLACED):
                name = _name(self._data[name_at:data_at])
                if name is None:
                    raise BadInput(f"{self.what}: is damaged: the variable at {at:#x} has no proper name")
                data = self._data[data_at:after]
                yield state, Variable(name, UUID(bytes_le=guid), attributes, data, time, count, key_index)
            at = after + -after % 4


def _find(data: bytes, what: str) -> tuple[int, int]:
    """Where the variables begin, and where the store ends."""
    at = -1
    while (at := data.find(guids.NV_DATA.bytes_le, at + 1)) >= 0:
        volume = at - 16
        if volume < 0 or len(data) < volume + _VOLUME.size:
            continue
        _guid, length, signature, _attributes, header_size, _sum, _extended, _revision = _VOLUME.unpack_from(
            data, volume
        )
        if signature != b"_FVH" or volume % 4:
            continue
        header = data[volume : volume + header_size]
        if (
            header_size < _VOLUME.size
            or len(header) % 4
            or sum(struct.unpack(f"<{len(header) // 2}H", header)) % 0x10000
        ):
            raise BadInput(f"{what}: is damaged: the firmware volume's header does not fit its checksum")
        if volume + length > len(data):
            raise BadInput(f"{what}: is truncated: {len(data)} bytes of {volume + length}")
        return _store(data, volume + header_size, volume + length, what)
    raise BadInput(f"{what}: has no edk2 variable store in it; give a VARS file such as OVMF_VARS_4M.fd")


def _store(data: bytes, at: int, end: int, what: str) -> tuple[int, int]:
    if at + _STORE.size > end:
        raise BadInput(f"{what}: is damaged: no room for a variable store")
    guid, size, formatted, healthy, _reserved, _more = _STORE.unpack_from(data, at)
    if UUID(bytes_le=guid) != guids.AUTHENTICATED_VARIABLES:
        raise BadInput(f"{what}: its variable store is not one of authenticated variables, as Secure Boot needs")
    if (formatted, healthy) != (_FORMATTED, _HEALTHY) or not _STORE.size <= size <= end - at:
        raise BadInput(f"{what}: is damaged: the variable store's header")
    if pending.is_pending(data, at + size, end):
        raise BadInput(f"{what}: its firmware was stopped while it wrote all of it: start the VM once, then stop it")
    return at + _STORE.size, at + size


def _name(raw: bytes) -> str | None:
    if len(raw) < 4 or len(raw) % 2 or raw[-2:] != b"\0\0":
        return None
    return raw[:-2].decode("utf-16-le", "surrogatepass")


def _pack(variable: Variable) -> bytes:
    name = variable.name.encode("utf-16-le", "surrogatepass") + b"\0\0"
    header = _HEADER.pack(
        _START, _ADDED, variable.attributes, variable.monotonic_count, variable.time, variable.key_index,
        len(name), len(variable.data), variable.guid.bytes_le,
    )  # fmt: skip
    size = len(header) + len(name) + len(variable.data)
    return header + name + variable.data + b"\xff" * (-size % 4)
