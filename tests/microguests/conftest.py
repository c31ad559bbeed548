"""Fixtures of the micro-guests: each test runs on every engine that is here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
import os
from collections.abc import Callable, Iterator
from typing import Any

import pytest
from microguest import MicroGuest

from kvmkit.errors import HostError


@functools.cache
def _absent(engine: str) -> str:
    """Why tests can't use this engine; empty when they can."""
    try:
        module: Any = importlib.import_module(f"kvmkit.accel.{engine}")
        if not hasattr(module, "create"):
            return f"{engine} has no create() yet"
        if engine == "kvm":
            from kvmkit.accel.kvm.system import KvmSystem

            KvmSystem().close()
    except (ImportError, HostError) as error:
        return str(error)
    return ""


GATE_16 = "QEMU's software CPU counts 16 bytes a gate in long-mode IDT error codes"
LIMITS = "QEMU's software CPU does not check segment limits"
EIGHT = "the software CPU's bus splits an access of 8 bytes in two"
DIFFERENT = {
    "cpu": {  # exceptions: also on a KVM that stands on QEMU's software CPU, as in the KVM test host
        "test_general_protection_in_real_mode_has_no_error_code": LIMITS,
    },
    "tcg": {
        "test_memory_doorbell_rings_instead_of_the_device[8-rax]": EIGHT,
        "test_doorbell_of_any_width_rings_for_each": EIGHT,
        "test_a_store_of_eight_bytes": EIGHT,
        "test_a_load_of_eight_bytes": EIGHT,
        "test_an_access_past_the_end_of_a_device_is_nobodys": "the software CPU's bus splits unaligned accesses",
    },
    "kvmhost": {
        "test_software_interrupt_from_ring_3_needs_a_gate_for_it": GATE_16,
        "test_gate_that_is_not_present[long]": GATE_16,
        "test_fault_in_the_delivery_of_a_fault_is_a_double_fault": "an exception that QEMU's SVM injects is forgotten",
    },
}
"""Where an engine differs from a processor, and how: by the test's name, or its name with parameters."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    host = "KVMKIT_KVMHOST" in os.environ
    for item in items:
        engine = "tcg" if "[tcg" in item.name else "kvm"
        tables = ("cpu", "tcg") if engine == "tcg" else ("cpu", "kvmhost") if host else ()
        plain = getattr(item, "originalname", item.name)
        parameters = item.name.removeprefix(plain).removeprefix(f"[{engine}-")
        for table in tables:
            reason = DIFFERENT[table].get(plain) or DIFFERENT[table].get(f"{plain}[{parameters}")
            if reason:
                item.add_marker(pytest.mark.xfail(reason=reason, strict=True))


@pytest.fixture(params=[pytest.param("kvm", marks=pytest.mark.kvm), "tcg"])
def engine(request: pytest.FixtureRequest) -> str:
    reason = _absent(request.param)
    if reason:
        pytest.skip(reason)
    return str(request.param)


@pytest.fixture
def guest(engine: str) -> Iterator[Callable[..., MicroGuest]]:
    """Make a MicroGuest on this engine: guest(code, mode, ...). It is closed after the test."""
    made: list[MicroGuest] = []

    def make(code: str, mode: str, **options: Any) -> MicroGuest:
        made.append(MicroGuest(engine, code, mode, **options))
        return made[-1]

    yield make
    for one in made:
        one.close()


@pytest.fixture
def only_kvm(engine: str) -> None:
    if engine != "kvm":
        pytest.skip("kvm only")


def _need_native(engine: str) -> None:
    if engine == "kvm":
        from kvmkit.accel.choose import probe

        found = probe()
        if not found.native:
            pytest.skip(f"this KVM does not run ring 0 natively: {found.reason}")


@pytest.fixture
def native(engine: str) -> None:
    """For code that a KVM without VMX or SVM would emulate, and refuse."""
    _need_native(engine)


@pytest.fixture
def native_iret(engine: str, mode: str) -> None:
    """KVM's emulator knows IRET in real and in long mode, and not in protected mode."""
    if mode == "protected":
        _need_native(engine)
