"""Each machine test runs on every engine that is here, and none may leave a thread or a descriptor behind."""

from __future__ import annotations

import gc
import os
import threading

import pytest
from guests import build

from kvmkit.errors import HostError
from kvmkit.machine import Machine, MachineSpec

MIB = 1 << 20


def _usable(engine: str) -> str:
    if engine == "tcg":
        return ""
    try:
        from kvmkit.accel.kvm.system import KvmSystem

        KvmSystem().close()
    except HostError as error:
        return str(error)
    return ""


@pytest.fixture(params=["tcg", pytest.param("kvm", marks=pytest.mark.kvm)])
def engine(request):
    why = _usable(request.param)
    if why:
        pytest.skip(why)
    return request.param


@pytest.fixture
def make(engine, tmp_path):
    """Make a machine around instructions; it is closed, and what it held is gone, when the test ends."""
    machines = []

    def make(text: str, *, console_in: int = -1, console_out: int = 1, **options: object) -> Machine:
        kernel = build(tmp_path, text)
        given: dict = {"accel": engine, "memory": 16 * MIB, "debug_exit": True, "timeout": 60, **options}
        machine = Machine(MachineSpec(kernel=kernel, **given), console_in=console_in, console_out=console_out)
        machines.append(machine)
        return machine

    before = set(threading.enumerate())
    yield make
    for machine in machines:
        machine.close()
    left = [thread.name for thread in threading.enumerate() if thread not in before]
    assert not left, f"threads left behind: {left}"


@pytest.fixture
def descriptors():
    """The number of open descriptors, counted after garbage is gone."""

    def count() -> int:
        gc.collect()
        return len(os.listdir("/proc/self/fd"))

    return count
