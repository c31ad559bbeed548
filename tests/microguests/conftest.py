"""Fixtures of the micro-guests: each test runs on every engine that is here."""

from __future__ import annotations

import functools
import importlib
import importlib.util
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


DIFFERENT = {
    "test_software_interrupt_from_ring_3_needs_a_gate_for_it": "long-mode IDT error codes count 16 bytes a gate",
    "test_gate_that_is_not_present[tcg-long]": "long-mode IDT error codes count 16 bytes a gate",
    "test_general_protection_in_real_mode_has_no_error_code": "segment limits are not checked",
    "test_memory_doorbell_rings_instead_of_the_device[tcg-8-rax]": "an access of 8 bytes comes as two of 4",
    "test_doorbell_of_any_width_rings_for_each": "an access of 8 bytes comes as two of 4",
    "test_a_store_of_eight_bytes": "an access of 8 bytes comes as two of 4",
    "test_a_load_of_eight_bytes": "an access of 8 bytes comes as two of 4",
    "test_an_access_past_the_end_of_a_device_is_nobodys": "an unaligned access comes in bytes",
}
"""Where QEMU's software CPU differs from a processor: the test's name, or its name with parameters, and how."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    for item in items:
        reason = DIFFERENT.get(item.name) or DIFFERENT.get(getattr(item, "originalname", ""))
        if reason and "[tcg" in item.name:
            item.add_marker(pytest.mark.xfail(reason=f"tcg: {reason}", strict=True))


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
        if not found.fit:
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
