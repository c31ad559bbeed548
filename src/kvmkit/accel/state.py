"""The names and sizes of saved state: bytes in KVM's own formats, as <linux/kvm.h> lays them out on x86-64.

`kvmkit.accel.structures` looks inside. Source: Documentation/virt/kvm/api.rst of Linux.
"""

from __future__ import annotations

VCPU_STATE: dict[str, int | None] = {
    "regs": 144,
    "sregs": 312,
    "xcrs": 392,
    "xsave": None,  # KVM_GET_XSAVE2: as long as the processor's features make it; 4096 at least
    "msrs": None,  # struct kvm_msr_entry (index u32, reserved u32, data u64) after one another
    "events": 64,
    "lapic": 1024,
    "debugregs": 128,
    "mp_state": 4,
}
"""Parts of a vCPU's state, in the order they are to be set, and their bytes (None: varies)."""

VM_STATE: dict[str, int | None] = {
    "pic_master": 520,  # struct kvm_irqchip, chip 0
    "pic_slave": 520,
    "ioapic": 520,
    "pit": 112,
    "clock": 48,  # struct kvm_clock_data
}
"""Parts of a VM's state beside its vCPUs and its memory."""
