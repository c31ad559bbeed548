"""Make a VM's directory from a spec."""

from __future__ import annotations

import signal
from collections.abc import Iterator
from contextlib import contextmanager

import msgspec

from kvmkit.errors import BadInput
from kvmkit.manager import home, spec
from kvmkit.manager.home import Home
from kvmkit.manager.record import Record
from kvmkit.manager.spec import VmSpec

INTERRUPTS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


@contextmanager
def made(wanted: VmSpec, *, temporary: bool = False) -> Iterator[Home]:
    """As `make`, for those who run it at once: a VM that comes to nothing is removed again.

    An interrupt waits until the VM has somebody who removes it.
    """
    before = signal.pthread_sigmask(signal.SIG_BLOCK, INTERRUPTS)
    try:
        with make(wanted, temporary=temporary) as home:
            try:
                signal.pthread_sigmask(signal.SIG_SETMASK, before)
                yield home
            except BaseException:
                home.abandon()
                raise
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def make(wanted: VmSpec, *, temporary: bool = False) -> Home:
    """A new VM, not running. `temporary`: it goes when it ends. BadInput: it can't be, or its name is taken."""
    wanted.check()
    wanted = wanted.identified()
    try:
        data = spec.encode(msgspec.structs.replace(wanted, name=""))  # its directory has the name
    except UnicodeEncodeError:
        if not temporary:
            raise BadInput("a VM that is kept can't have a path or an argument that is not UTF-8") from None
        data = spec.encode(VmSpec(memory=wanted.memory, cpus=wanted.cpus))  # nobody will start it from this
    return home.create(wanted.name, data, Record(temporary=temporary), keep=not temporary)
