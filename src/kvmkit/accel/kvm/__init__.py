"""The `kvm` engine: the guest runs on the processor, through /dev/kvm. One type for each of KVM's file descriptors."""

from __future__ import annotations

from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from kvmkit.accel import VirtualMachine
    from kvmkit.bus import AddressSpace
    from kvmkit.memory import GuestMemory


def create(
    memory: GuestMemory, ports: AddressSpace, mmio: AddressSpace, *, cpu: str = "host", cpus: int = 1
) -> VirtualMachine:
    """A VM with KVM's interrupt controllers and PIT. `cpu` is a model of `kvmkit.accel.cpuid`.

    Raises BadInput for a model or a number of CPUs that can't be, HostError when KVM can't be used.
    """
    from kvmkit.accel import cpuid

    from .system import CAPABILITIES, REQUIRED, KvmSystem
    from .vm import KvmVm, required_missing

    system = KvmSystem()
    try:
        required_missing(system, REQUIRED)
        supported = cpuid.with_engine(
            system.supported_cpuid(), deadline=bool(system.check_extension(CAPABILITIES["TSC_DEADLINE_TIMER"]))
        )
        return KvmVm(system, memory, ports, mmio, cpuid.select(cpu, supported), cpus)
    finally:
        system.close()
