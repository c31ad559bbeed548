"""Make a VM's directory from a spec."""

from __future__ import annotations

import msgspec

from kvmkit.errors import BadInput
from kvmkit.manager import home, spec
from kvmkit.manager.home import Home
from kvmkit.manager.record import Record
from kvmkit.manager.spec import VmSpec


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
