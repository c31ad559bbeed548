"""`python -m kvmkit.bench.bare_process KERNEL`: that kernel in the bare loop, as a process like the other two."""

from __future__ import annotations

import sys
from pathlib import Path

from kvmkit.errors import KvmkitError

MEMORY = 16 << 20


def run(kernel: Path, out: int) -> int:
    """Returns the number of exits. Raises KvmkitError when the kernel does not run to its end."""
    from kvmkit import boot
    from kvmkit.accel import cpuid
    from kvmkit.accel.kvm.system import KvmSystem
    from kvmkit.accel.kvm.vm import KvmVm
    from kvmkit.bench.bare import reenter
    from kvmkit.bus import AddressSpace
    from kvmkit.memory import GuestMemory

    memory = GuestMemory(MEMORY)
    system = KvmSystem()
    model = cpuid.select("max", system.supported_cpuid())
    vm = KvmVm(system, memory, AddressSpace("ports"), AddressSpace("memory"), model, 1)
    system.close()
    vcpu = vm.create_vcpu(0)
    try:
        boot.load(memory, kernel, initrd=[], cmdline="", rsdp=0).apply(vcpu)
        return reenter(vcpu, out)
    finally:
        vcpu.close()
        vm.close()
        memory.close()


if __name__ == "__main__":
    try:
        run(Path(sys.argv[1]), 1)
    except KvmkitError as error:
        sys.exit(f"kvmkit: {error}")
