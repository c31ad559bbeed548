"""The engine `tcg`: a PC's CPU in software (Unicorn), for hosts where there is no KVM. One vCPU."""

from __future__ import annotations

from typing import TYPE_CHECKING

from kvmkit.accel.tcg.vm import TcgVm
from kvmkit.errors import BadInput

if TYPE_CHECKING:
    from kvmkit.bus import AddressSpace
    from kvmkit.memory import GuestMemory


def create(memory: GuestMemory, ports: AddressSpace, mmio: AddressSpace, *, cpu: str, cpus: int) -> TcgVm:
    """See kvmkit.accel.Engine."""
    if cpus != 1:
        raise BadInput(f"--cpus {cpus}: the tcg engine runs one vCPU; use --cpus 1, or --accel kvm")
    return TcgVm(memory, ports, mmio, cpu)
