"""Global interrupt numbers for messages: which message each stands for now."""

from __future__ import annotations

import threading
from typing import TYPE_CHECKING

from kvmkit.accel import MsiRoute
from kvmkit.errors import BadInput, KvmkitError

if TYPE_CHECKING:
    from kvmkit.accel import VirtualMachine

FIRST_GSI = 24
MOST_VECTORS = 224
"""An eventfd each. The software engine's timer thread polls all of them, 256 at most."""


class MsiRoutes:
    """The routes of one VM. Any thread may call; each change is with the engine when the call returns."""

    def __init__(self, vm: VirtualMachine) -> None:
        self.vm = vm
        self._lock = threading.Lock()
        self._routes: dict[int, MsiRoute] = {}
        self._next = FIRST_GSI

    def allocate(self, count: int) -> range:
        """GSIs for `count` vectors. Raises BadInput when there are no more."""
        with self._lock:
            first = self._next
            if first + count > FIRST_GSI + MOST_VECTORS:
                raise BadInput(f"the devices want more than {MOST_VECTORS} interrupt vectors: give them fewer queues")
            self._next += count
        return range(first, first + count)

    def set(self, gsi: int, address: int, data: int) -> bool:
        """Have `gsi` send this message. False: no local APIC is at that address, or the engine refuses it.

        A device that sends it would write `data` to memory there, which no driver of a PC wants.
        """
        if address >> 20 & 0xFFF != 0xFEE or address >> 32 & 0xFF:
            return False
        route = MsiRoute(gsi, address, data)
        with self._lock:
            old = self._routes.get(gsi)
            if old == route:
                return True
            self._routes[gsi] = route
            try:
                self.vm.set_msi_routes(list(self._routes.values()))
            except KvmkitError:  # the engine keeps the table it had
                if old is None:
                    del self._routes[gsi]
                else:
                    self._routes[gsi] = old
                return False
        return True
