"""The state in which the boot processor enters a kernel: 64-bit with paging, or 32-bit protected without."""

from __future__ import annotations

import struct
from typing import NamedTuple, Protocol

GDT_64 = struct.pack(
    "<6Q",
    0,
    0,
    0x00AF9B000000FFFF,  # 0x10, __BOOT_CS: 64-bit code
    0x00CF93000000FFFF,  # 0x18, __BOOT_DS: data
    0x00008B000000FFFF,  # 0x20: a busy task-state segment at 0, which the processor wants to have
    0,
)
GDT_32 = struct.pack(
    "<4Q",
    0,
    0x00CF9B000000FFFF,  # 0x08: 32-bit code
    0x00CF93000000FFFF,  # 0x10: data
    0x00008B000000FFFF,  # 0x18: a busy task-state segment
)

CR0_PE, CR0_ET, CR0_NE, CR0_WP, CR0_AM, CR0_PG, CR0_MP = 1, 1 << 4, 1 << 5, 1 << 16, 1 << 18, 1 << 31, 2
CR4_PAE = 1 << 5
EFER_LME, EFER_LMA = 1 << 8, 1 << 10

CODE, DATA, BUSY_TSS = 11, 3, 11


class Vcpu(Protocol):
    """The part of `kvmkit.accel.VirtualCpu` that is needed here."""

    def get(self, name: str) -> bytes: ...
    def set(self, name: str, data: bytes) -> None: ...


class BootState(NamedTuple):
    """How vCPU 0 is to start. Every other vCPU waits for INIT and SIPI, as after reset.

    `kind` is "linux" (vmlinux by the 64-bit boot protocol), "linux-decompressor" (the bzImage unpacks itself; `note`
    says why) or "multiboot". `entry` is the first instruction's address, `gdt` the table's address in guest memory;
    `page_table` is CR3 of a 64-bit start and None for a 32-bit one.
    """

    kind: str
    entry: int
    gdt: int
    registers: dict[str, int]
    page_table: int | None = None
    note: str = ""

    def apply(self, vcpu: Vcpu) -> None:
        """Set the registers of `vcpu`, fresh from reset. What has nothing to do with booting (APIC base) stays."""
        sregs = bytearray(vcpu.get("sregs"))
        wide = self.page_table is not None
        code, data, task = (0x10, 0x18, 0x20) if wide else (0x08, 0x10, 0x18)
        # struct kvm_sregs, as kvmkit.accel.state has it too: eight segments, GDT and IDT, control registers, EFER.
        segments = [_segment(code, CODE, long=wide), *[_segment(data, DATA)] * 5]
        segments.append(SEGMENT.pack(0, 0xFFFF, task, BUSY_TSS, 1, 0, 0, 0, 0, 0, 0, 0, 0))
        segments.append(SEGMENT.pack(0, 0, 0, 2, 0, 0, 0, 0, 0, 0, 0, 1, 0))  # an LDT that is not there
        at = SEGMENT.size * len(segments)
        sregs[:at] = b"".join(segments)
        DESCRIPTOR_TABLE.pack_into(sregs, at, self.gdt, len(GDT_64 if wide else GDT_32) - 1)
        DESCRIPTOR_TABLE.pack_into(sregs, at + DESCRIPTOR_TABLE.size, 0, 0)
        (cr8,) = struct.unpack_from("<Q", sregs, at + 2 * DESCRIPTOR_TABLE.size + 32)
        cr0, cr3, cr4, efer = CR0_PE | CR0_ET, 0, 0, 0
        if self.page_table is not None:
            cr0 |= CR0_MP | CR0_NE | CR0_WP | CR0_AM | CR0_PG
            cr3, cr4, efer = self.page_table, CR4_PAE, EFER_LME | EFER_LMA
        struct.pack_into("<6Q", sregs, at + 2 * DESCRIPTOR_TABLE.size, cr0, 0, cr3, cr4, cr8, efer)
        vcpu.set("sregs", bytes(sregs))
        given = {**self.registers, "rip": self.entry, "rflags": 2}
        vcpu.set("regs", struct.pack(f"<{len(REGISTERS)}Q", *(given.get(name, 0) for name in REGISTERS)))


REGISTERS = "rax rbx rcx rdx rsi rdi rsp rbp r8 r9 r10 r11 r12 r13 r14 r15 rip rflags".split()
"""struct kvm_regs."""
SEGMENT = struct.Struct("<QIH10B")
"""struct kvm_segment: base, limit, selector, type, present, dpl, db, s, l, g, avl, unusable, padding."""
DESCRIPTOR_TABLE = struct.Struct("<QH6x")
"""struct kvm_dtable: base, limit."""


def _segment(selector: int, kind: int, *, long: bool = False) -> bytes:
    """A flat segment of 4 GiB."""
    return SEGMENT.pack(0, 0xFFFFFFFF, selector, kind, 1, 0, not long, 1, long, 1, 0, 0, 0)
