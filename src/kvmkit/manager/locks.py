"""Locks on a VM's lock file: which process runs it, and who may change its directory just now.

They are open file description locks (fcntl(2), F_OFD_SETLK): the kernel drops them when the process that holds one
ends, however it ends, so that none is ever stale; and whether one is held can be asked without taking it.
"""

from __future__ import annotations

import errno
import fcntl
import os
import struct
import time

ALIVE = 0
"""The byte that a VM's process locks for as long as it lives."""
CHANGING = 1
"""The byte that is locked, for moments, by whoever starts, renames or removes the VM, or notes its death."""

_FLOCK = struct.Struct("hhxxxxqqixxxx")
_AGAIN_SECONDS = 0.002


def take(fd: int, byte: int, wait: float = 0.0) -> bool:
    """Lock `byte` of an open file, trying for `wait` seconds; False: somebody else has it."""
    end = time.monotonic() + wait
    while True:
        try:
            fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
            return True
        except OSError as error:
            if error.errno not in (errno.EAGAIN, errno.EACCES):
                raise
        if time.monotonic() >= end:
            return False
        time.sleep(_AGAIN_SECONDS)


def release(fd: int, byte: int) -> None:
    fcntl.fcntl(fd, fcntl.F_OFD_SETLK, _FLOCK.pack(fcntl.F_UNLCK, os.SEEK_SET, byte, 1, 0))


def held(fd: int, byte: int) -> bool:
    """Whether another open file has `byte` locked. Nothing is taken."""
    answer = fcntl.fcntl(fd, fcntl.F_OFD_GETLK, _FLOCK.pack(fcntl.F_WRLCK, os.SEEK_SET, byte, 1, 0))
    return int(_FLOCK.unpack(answer)[0]) != fcntl.F_UNLCK
