"""MSI-X: a table of messages in a BAR, each with a mask; what happens under a mask is pending.

A vector is an eventfd. While it can interrupt, the engine has it as an irqfd and no code of ours runs; under a mask it
is taken from the engine, and what is written to it stays there until the mask is lifted.
Source: PCI Local Bus 3.0, 6.8.2.
"""

from __future__ import annotations

import os
import select
import threading
from collections.abc import Callable
from typing import Annotated

import msgspec
from msgspec import Meta

from kvmkit.bus import Device
from kvmkit.devices.lines import nobody
from kvmkit.devices.saved import checked
from kvmkit.errors import BadInput

from .config import Capability, ConfigSpace
from .routes import MsiRoutes

ENTRY_BYTES = 16
MASK = 1
ENABLE, FUNCTION_MASK = 1 << 15, 1 << 14
MOST = 2048


class MsixState(msgspec.Struct, forbid_unknown_fields=True):
    """The table's bytes and the vectors that are pending. What is in the capability is the configuration space's."""

    table: bytes
    pending: list[Annotated[int, Meta(ge=0, lt=MOST)]] = []


class Msix:
    """`count` vectors, whose table and pending bits are at these offsets of BAR `bar`."""

    def __init__(self, routes: MsiRoutes, count: int, *, bar: int, table_offset: int, pending_offset: int) -> None:
        if not 1 <= count <= MOST or not 0 <= bar <= 5 or table_offset % 8 or pending_offset % 8:
            raise BadInput(f"MSI-X with {count} vectors, its table at {table_offset:#x}, can't be")
        self.count = count
        self.table: Device = _Table(self)
        self.pending_bits: Device = _PendingBits(self)
        self._routes = routes
        self._gsis = routes.allocate(count)
        self._where = (bar, table_offset, pending_offset)
        self._lock = threading.RLock()  # vCPUs' threads
        self._live = [False] * count
        self.entries = bytearray(_RESET_ENTRY * count)
        self.enabled = self.masked = False
        self.on_enable: Callable[[], None] = nobody
        """Called when the function begins or ends to use MSI-X."""
        self.fds: list[int] = []
        try:
            for _ in range(count):
                self.fds.append(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC))
        except OSError:
            self.close()
            raise

    @property
    def table_bytes(self) -> int:
        return ENTRY_BYTES * self.count

    @property
    def pending_bytes(self) -> int:
        return (self.count + 63) // 64 * 8

    def attach(self, config: ConfigSpace) -> None:
        """Put the capability there."""
        bar, table, pending = self._where
        body = (self.count - 1).to_bytes(2, "little")
        body += (table | bar).to_bytes(4, "little") + (pending | bar).to_bytes(4, "little")
        writable = (ENABLE | FUNCTION_MASK).to_bytes(2, "little")
        self._config = config
        self._control = config.add_capability(Capability.MSIX, body, writable) + 2
        config.watch(self._control, 2, after_write=self._control_written)

    def trigger(self, vector: int) -> None:
        """Interrupt, as a write to the vector's eventfd does. A vector that is not there is left out."""
        if 0 <= vector < self.count and self.enabled:
            try:
                os.eventfd_write(self.fds[vector], 1)
            except BlockingIOError:
                pass  # written 2^64 times since the mask was set: it is pending already

    # The table and what follows from it.

    def _control_written(self, offset: int, size: int) -> None:
        with self._lock:
            control = self._config.get(self._control, 2)
            enabled = bool(control & ENABLE)
            changed = enabled != self.enabled
            if changed and enabled:
                self._forget_pending()
            self.enabled, self.masked = enabled, bool(control & FUNCTION_MASK)
            for vector in range(self.count):
                self._update(vector)
        if changed:
            self.on_enable()

    def read_table(self, offset: int, size: int) -> int:
        return int.from_bytes(self.entries[offset : offset + size], "little")

    def write_table(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            data = bytearray(value.to_bytes(8, "little")[:size])
            for i in range(size):
                at = (offset + i) % ENTRY_BYTES
                if at >= 12:
                    data[i] &= MASK if at == 12 else 0
            end = min(offset + size, len(self.entries))
            self.entries[offset:end] = data[: end - offset]
            for vector in range(offset // ENTRY_BYTES, (end - 1) // ENTRY_BYTES + 1):
                self._update(vector)

    def _update(self, vector: int) -> None:
        """Give the vector's eventfd to the engine, or take it back. Lock held."""
        entry = self.entries[vector * ENTRY_BYTES : (vector + 1) * ENTRY_BYTES]
        live = self.enabled and not self.masked and not entry[12] & MASK
        gsi = self._gsis[vector]
        if live:
            # The route first: what is pending is sent at once when the eventfd is the engine's.
            address, data = int.from_bytes(entry[0:8], "little"), int.from_bytes(entry[8:12], "little")
            live = self._routes.set(gsi, address, data)
        if live == self._live[vector]:
            return
        self._live[vector] = live
        if live:
            self._routes.vm.irqfd(self.fds[vector], gsi)
        else:
            self._routes.vm.remove_irqfd(self.fds[vector], gsi)

    def is_pending(self, vector: int) -> bool:
        """It has been triggered and could not interrupt."""
        if self._live[vector]:
            return False
        poll = select.poll()
        poll.register(self.fds[vector], select.POLLIN)
        return bool(poll.poll(0))

    def read_pending(self, offset: int, size: int) -> int:
        value = 0
        if self.enabled:
            for bit in range(8 * size):
                vector = 8 * offset + bit
                if vector < self.count and self.is_pending(vector):
                    value |= 1 << bit
        return value

    def _forget_pending(self) -> None:
        for fd in self.fds:
            try:
                os.eventfd_read(fd)
            except BlockingIOError:
                pass

    def reset(self) -> None:
        """Every vector masked and none pending, and MSI-X off."""
        with self._lock:
            self._config.put(self._control, 2, self.count - 1)
            self.entries[:] = _RESET_ENTRY * self.count
            self._control_written(self._control, 2)
            self._forget_pending()

    # Saved state and the end.

    def state(self) -> MsixState:
        pending = [vector for vector in range(self.count) if self.is_pending(vector)] if self.enabled else []
        return MsixState(table=bytes(self.entries), pending=pending)

    def restore(self, state: object) -> None:
        """Take a saved state; the configuration space has been restored before."""
        new = checked(state, MsixState, "MSI-X")
        if len(new.table) != len(self.entries) or any(vector >= self.count for vector in new.pending):
            raise BadInput(f"saved state of MSI-X: it is not of {self.count} vectors")
        with self._lock:
            for vector in range(self.count):
                self.write_table(vector * ENTRY_BYTES, 8, int.from_bytes(new.table[vector * 16 :][:8], "little"))
                self.write_table(
                    vector * ENTRY_BYTES + 8, 8, int.from_bytes(new.table[vector * 16 + 8 :][:8], "little")
                )
            self._control_written(self._control, 2)
        for vector in new.pending:
            self.trigger(vector)

    def close(self) -> None:
        """The engine's VM is closed by now."""
        for fd in self.fds:
            os.close(fd)
        self.fds = []


_RESET_ENTRY = bytes(12) + bytes([MASK, 0, 0, 0])


class _Table(Device):
    def __init__(self, msix: Msix) -> None:
        self.msix = msix

    def read(self, offset: int, size: int) -> int:
        return self.msix.read_table(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        self.msix.write_table(offset, size, value)


class _PendingBits(Device):
    """Read only."""

    def __init__(self, msix: Msix) -> None:
        self.msix = msix

    def read(self, offset: int, size: int) -> int:
        return self.msix.read_pending(offset, size)

    def write(self, offset: int, size: int, value: int) -> None:
        pass
