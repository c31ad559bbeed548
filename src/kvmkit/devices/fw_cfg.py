"""fw_cfg: named files that a machine hands its firmware, by two ports or by DMA.

Only reading: what the guest writes is dropped. Source: docs/specs/fw_cfg.rst of QEMU.
"""

from __future__ import annotations

import struct
from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Annotated

import msgspec
from msgspec import Meta

from kvmkit.bus import Device
from kvmkit.devices.saved import checked
from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.memory import GuestMemory

SELECTOR, DATA, DMA = 0x0, 0x1, 0x4
"""Offsets from the first port: the selector has two bytes, the DMA address eight, most significant first."""
PORTS = 12

SIGNATURE, ID, CPUS, BOOT_MENU, MOST_CPUS, DIRECTORY = 0x00, 0x01, 0x05, 0x0E, 0x0F, 0x19
FIRST_FILE = 0x20
MAX_FILES = 0x1000
NAME_BYTES = 56
FEATURES = 3
"""Of ID: the two ports, and DMA."""
DMA_SIGNATURE = int.from_bytes(b"QEMU CFG", "big")

ERROR, READ, SKIP, SELECT, WRITE = 1, 2, 4, 8, 16
ACCESS = struct.Struct(">IIQ")
"""struct FWCfgDmaAccess: control, length, address."""
MOST = 16 << 20
"""Bytes of one transfer: a guest that asks for gigabytes of zeros would keep its machine from being stopped."""


class FwCfgState(msgspec.Struct, forbid_unknown_fields=True):
    """`offset` is how far the selected item has been read; `dma_high` the half of an address that has been written."""

    selected: Annotated[int, Meta(ge=0, le=0xFFFF)] = 0
    offset: Annotated[int, Meta(ge=0)] = 0
    dma_high: Annotated[int, Meta(ge=0, le=0xFFFFFFFF)] = 0


class FwCfg(Device):
    """`files` by their names, of at most 55 bytes each, and `items` by their numbers. A file that depends on what
    the guest has set up by then is a function that makes it, of the same size at any time; it is called when the guest
    selects the file. vCPUs that use it at once spoil only their own reading.
    """

    def __init__(
        self,
        memory: GuestMemory,
        files: Mapping[str, bytes | Callable[[], bytes]],
        *,
        items: Mapping[int, bytes] | None = None,
        cpus: int = 1,
    ) -> None:
        if len(files) > MAX_FILES:
            raise BadInput(f"fw_cfg: {len(files)} files; {MAX_FILES} can be")
        self._memory = memory
        self._selected = self._offset = self._high = 0
        count = min(cpus, 0xFFFF).to_bytes(2, "little")
        self._items: dict[int, bytes] = {
            SIGNATURE: b"QEMU",
            ID: FEATURES.to_bytes(4, "little"),
            CPUS: count,
            MOST_CPUS: count,
            BOOT_MENU: bytes(2),
            **(items or {}),
        }
        self._made: dict[int, Callable[[], bytes]] = {}
        entries = [struct.pack(">I", len(files))]
        for key, name in enumerate(sorted(files), FIRST_FILE):
            encoded = name.encode()
            if not 0 < len(encoded) < NAME_BYTES:
                raise BadInput(f"fw_cfg: a name has 1 to {NAME_BYTES - 1} bytes: {name!r}")
            content = files[name]
            if callable(content):
                self._made[key] = content
                content = content()
            entries.append(struct.pack(f">IHH{NAME_BYTES}s", len(content), key, 0, encoded))
            self._items[key] = content
        self._items[DIRECTORY] = b"".join(entries)

    def read(self, offset: int, size: int) -> int:
        if offset == DATA and size == 1:
            return self._take(1)[0]
        if offset >= DMA and offset + size <= DMA + 8:
            shift = 8 * (DMA + 8 - offset - size)
            value = DMA_SIGNATURE >> shift & ((1 << 8 * size) - 1)
            return int.from_bytes(value.to_bytes(size, "big"), "little")
        return 0

    def write(self, offset: int, size: int, value: int) -> None:
        if offset == SELECTOR and size == 2:
            self._select(value & 0xFFFF)
        elif size == 4 and offset in (DMA, DMA + 4):
            half = int.from_bytes((value & 0xFFFFFFFF).to_bytes(4, "little"), "big")
            if offset == DMA:
                self._high = half
            else:
                address, self._high = self._high << 32 | half, 0
                self._transfer(address)
        elif size == 8 and offset == DMA:
            self._transfer(int.from_bytes((value & (2**64 - 1)).to_bytes(8, "little"), "big"))

    def _select(self, key: int) -> None:
        self._selected, self._offset = key, 0
        if key in self._made:
            self._items[key] = self._made[key]().ljust(len(self._items[key]), b"\0")[: len(self._items[key])]

    def _take(self, size: int) -> bytes:
        """The next bytes of the selected item; zeros after its end, and where there is none."""
        item = self._items.get(self._selected, b"")
        data = item[self._offset : self._offset + size]
        self._offset = min(self._offset + size, len(item))
        return data + bytes(size - len(data))

    def _transfer(self, address: int) -> None:
        """Do what the structure at `address` asks for. Every address in it is the guest's: only RAM is touched."""
        try:
            control, length, to = ACCESS.unpack(self._memory.read(address, ACCESS.size))
        except (ValueError, OverflowError):
            return  # there is no place to tell
        self._memory.write(address, struct.pack(">I", ERROR if self._carry_out(control, length, to) else 0))

    def _carry_out(self, control: int, length: int, to: int) -> bool:
        """Whether it failed."""
        if control & SELECT:
            self._select(control >> 16)
        if control & READ:
            if length > MOST:
                return True
            try:
                self._memory.write(to, self._take(length))
            except (ValueError, OverflowError):
                return True
        elif control & SKIP:
            self._offset = min(self._offset + length, len(self._items.get(self._selected, b"")))
        elif control & WRITE:
            return True
        return False

    def state(self) -> FwCfgState:
        return FwCfgState(selected=self._selected, offset=self._offset, dma_high=self._high)

    def restore(self, state: FwCfgState) -> None:
        """Raises BadInput for a state that can't be."""
        found = checked(state, FwCfgState, "fw_cfg")
        self._selected, self._offset, self._high = found.selected, found.offset, found.dma_high
