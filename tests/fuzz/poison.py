"""Where the address sanitizer is: have it see every access beside guest RAM."""

from __future__ import annotations

import ctypes
import re
from pathlib import Path

from kvmkit.memory import GuestMemory


def fence(memory: GuestMemory) -> None:
    """Forbid what is mapped around `memory` and not the guest's; nothing happens without the sanitizer."""
    try:
        poison = ctypes.CDLL(None).__asan_poison_memory_region
    except AttributeError:
        return
    poison.argtypes = (ctypes.c_void_p, ctypes.c_size_t)
    (_, host, size), *_ = memory.regions()
    for line in Path("/proc/self/maps").read_text().splitlines():
        found = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw.. \S+ 00:00 0", line)
        if found is None:
            continue
        start, end = int(found[1], 16), int(found[2], 16)
        if start <= host and host + size <= end:
            before, after = min(host - start, 1 << 20), min(end - host - size, 1 << 20)
            poison(host - before, before)
            poison(host + size, after)
