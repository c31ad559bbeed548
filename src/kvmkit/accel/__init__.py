"""Accelerators: what runs a guest's instructions. `kvm` is the processor through /dev/kvm, `tcg` is a software CPU.

The interface is KVM's own model, because that is the field's: a VM has memory, an interrupt controller and
doorbells; a vCPU has `run`, `kick` and state in and out. Both engines keep state in KVM's formats
(`kvmkit.accel.state`), so what a snapshot means does not depend on the engine.
"""

from __future__ import annotations

from enum import IntEnum
from typing import TYPE_CHECKING, Protocol

from msgspec import Struct

if TYPE_CHECKING:
    from kvmkit.bus import AddressSpace
    from kvmkit.memory import GuestMemory

ENGINES = ("kvm", "tcg")


class ExitReason(IntEnum):
    """Why a vCPU's `run` came back to the machine. Port and memory accesses never do: the bus answers them."""

    KICKED = 0
    """Somebody called `kick`; the guest can go on."""
    SHUTDOWN = 1
    """A triple fault."""
    SYSTEM_EVENT = 2
    """The guest asked the hypervisor to power off or reset."""
    FAILED_ENTRY = 3
    """The processor refused the guest's state."""
    INTERNAL_ERROR = 4
    """The engine met an instruction or a state it can't go on from."""
    HALTED = 5
    """HLT, in a VM that has no interrupt controller."""


class Exit(Struct, frozen=True):
    """One return of `VirtualCpu.run`. `detail` says in a line what the engine knows, `code` is its own number."""

    reason: ExitReason
    code: int = 0
    detail: str = ""


class MsiRoute(Struct, frozen=True):
    """A global interrupt number (GSI, 24 and up) that stands for a message-signalled interrupt."""

    gsi: int
    address: int
    data: int


class VirtualCpu(Protocol):
    """One vCPU. `run` belongs to one thread; state may be read and set only while that thread is not in `run`."""

    index: int

    def run(self) -> Exit:
        """Run the guest until something only the machine can decide. Releases the GIL."""

    def kick(self) -> None:
        """Make `run` return soon with KICKED (at once, if it is not running). Any thread may call it."""

    def get(self, name: str) -> bytes:
        """A part of the state in KVM's format: a key of `kvmkit.accel.state.VCPU_STATE`. Raises KeyError."""

    def set(self, name: str, data: bytes) -> None:
        """The inverse of `get`. Raises KvmkitError when the engine refuses the state."""

    def exits(self) -> dict[str, int]:
        """How often the guest left for each reason since it was created: port, memory, halt, interrupt, ..."""

    def translate(self, address: int) -> int | None:
        """The guest physical address behind a linear one, by the guest's own page tables; None: not mapped."""

    def close(self) -> None:
        """Give back what the host holds for it."""


class VirtualMachine(Protocol):
    """One VM of an engine, made by `create`. Its memory and its two address spaces are given at the start."""

    engine: str

    def create_vcpu(self, index: int) -> VirtualCpu:
        """vCPU `index` (its APIC id); 0 is the boot processor, others wait for INIT and SIPI."""

    def set_irq(self, gsi: int, level: int) -> None:
        """Set interrupt line `gsi` (0-15 also reach the PIC) to 0 or 1. Any thread may call it."""

    def signal_msi(self, address: int, data: int) -> None:
        """Deliver one message-signalled interrupt."""

    def set_msi_routes(self, routes: list[MsiRoute]) -> None:
        """Replace all routes of GSIs 24 and up."""

    def irqfd(self, fd: int, gsi: int, resample: int = -1) -> None:
        """Writing eventfd `fd` raises `gsi`; with `resample` the line is level-triggered, and an EOI is told there."""

    def remove_irqfd(self, fd: int, gsi: int) -> None: ...

    def ioeventfd(self, fd: int, address: int, size: int, *, port: bool = False, match: int | None = None) -> None:
        """A doorbell: a guest write of `size` bytes (0: any) at `address` signals eventfd `fd` and nothing else."""

    def remove_ioeventfd(
        self, fd: int, address: int, size: int, *, port: bool = False, match: int | None = None
    ) -> None: ...

    def get(self, name: str) -> bytes:
        """A part of the state in KVM's format: a key of `kvmkit.accel.state.VM_STATE`."""

    def set(self, name: str, data: bytes) -> None: ...

    def memory_written(self, address: int, length: int) -> None:
        """A device wrote to guest RAM here: translated code must go. Nothing to do on `kvm`."""

    def close(self) -> None: ...


class Engine(Protocol):
    """What `kvmkit.accel.kvm` and `kvmkit.accel.tcg` each offer as module functions."""

    def create(
        self, memory: GuestMemory, ports: AddressSpace, mmio: AddressSpace, *, cpu: str, cpus: int
    ) -> VirtualMachine:
        """A VM with an interrupt controller and a PIT. Raises BadInput (model, count) or HostError, in one line."""
