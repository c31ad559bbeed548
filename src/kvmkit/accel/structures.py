"""KVM's structures for those who look inside a saved state (reports, tests), as <linux/kvm.h> lays them out on x86-64.

Engines give and take bytes (`kvmkit.accel.state`), and a run that goes well needs none of this.
Source: Documentation/virt/kvm/api.rst and arch/x86/include/uapi/asm/kvm.h of Linux.
"""

from __future__ import annotations

import ctypes
from ctypes import c_uint8, c_uint16, c_uint32, c_uint64


class Regs(ctypes.Structure):
    """struct kvm_regs."""

    _fields_ = [
        (name, c_uint64) for name in "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()
    ]


class Segment(ctypes.Structure):
    """struct kvm_segment. `limit` is in bytes, whatever `g` says; `type` is the descriptor's four bits."""

    _fields_ = [
        ("base", c_uint64),
        ("limit", c_uint32),
        ("selector", c_uint16),
        *((name, c_uint8) for name in "type present dpl db s l g avl unusable padding".split()),
    ]


class DescriptorTable(ctypes.Structure):
    """struct kvm_dtable."""

    _fields_ = [("base", c_uint64), ("limit", c_uint16), ("padding", c_uint16 * 3)]


class Sregs(ctypes.Structure):
    """struct kvm_sregs."""

    _fields_ = [
        *((name, Segment) for name in "cs ds es fs gs ss tr ldt".split()),
        ("gdt", DescriptorTable),
        ("idt", DescriptorTable),
        *((name, c_uint64) for name in "cr0 cr2 cr3 cr4 cr8 efer apic_base".split()),
        ("interrupt_bitmap", c_uint64 * 4),
    ]


class Events(ctypes.Structure):
    """struct kvm_vcpu_events."""

    _fields_ = [
        *((name, c_uint8) for name in "exception_injected exception_nr has_error_code exception_pending".split()),
        ("error_code", c_uint32),
        *((name, c_uint8) for name in "interrupt_injected interrupt_nr interrupt_soft interrupt_shadow".split()),
        *((name, c_uint8) for name in "nmi_injected nmi_pending nmi_masked nmi_padding".split()),
        ("sipi_vector", c_uint32),
        ("flags", c_uint32),
        *((name, c_uint8) for name in "smm pending inside_nmi latched_init".split()),
        ("triple_fault", c_uint8),
        ("reserved", c_uint8 * 26),
        ("exception_has_payload", c_uint8),
        ("exception_payload", c_uint64),
    ]


class DebugRegs(ctypes.Structure):
    """struct kvm_debugregs."""

    _fields_ = [
        ("db", c_uint64 * 4),
        ("dr6", c_uint64),
        ("dr7", c_uint64),
        ("flags", c_uint64),
        ("reserved", c_uint64 * 9),
    ]


class PitChannel(ctypes.Structure):
    """struct kvm_pit_channel_state."""

    _fields_ = [
        ("count", c_uint32),
        ("latched_count", c_uint16),
        *((name, c_uint8) for name in "count_latched status_latched status read_state write_state".split()),
        *((name, c_uint8) for name in "write_latch rw_mode mode bcd gate".split()),
        ("count_load_time", ctypes.c_int64),
    ]


class Pit(ctypes.Structure):
    """struct kvm_pit_state2."""

    _fields_ = [("channels", PitChannel * 3), ("flags", c_uint32), ("reserved", c_uint32 * 9)]
