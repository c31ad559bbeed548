"""The state in which the boot processor enters a kernel: 64-bit with paging, or 32-bit protected without."""

from __future__ import annotations

import struct
from dataclasses import dataclass
from typing import Protocol

from kvmkit.accel.state import Regs, Segment, Sregs

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


@dataclass(frozen=True, slots=True)
class BootState:
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
        sregs = Sregs.from_buffer_copy(vcpu.get("sregs"))
        wide = self.page_table is not None
        code, data, task = (0x10, 0x18, 0x20) if wide else (0x08, 0x10, 0x18)
        sregs.cs = _segment(code, CODE, long=wide)
        for name in ("ds", "es", "fs", "gs", "ss"):
            setattr(sregs, name, _segment(data, DATA))
        sregs.tr = Segment(base=0, limit=0xFFFF, selector=task, type=BUSY_TSS, present=1)
        sregs.ldt = Segment(type=2, unusable=1)
        sregs.gdt.base = self.gdt
        sregs.gdt.limit = len(GDT_64 if wide else GDT_32) - 1
        sregs.idt.base = sregs.idt.limit = 0
        sregs.cr2 = 0
        if self.page_table is not None:
            sregs.cr0 = CR0_PE | CR0_MP | CR0_ET | CR0_NE | CR0_WP | CR0_AM | CR0_PG
            sregs.cr3 = self.page_table
            sregs.cr4 = CR4_PAE
            sregs.efer = EFER_LME | EFER_LMA
        else:
            sregs.cr0 = CR0_PE | CR0_ET
            sregs.cr3 = sregs.cr4 = sregs.efer = 0
        vcpu.set("sregs", bytes(sregs))
        vcpu.set("regs", bytes(Regs(rip=self.entry, rflags=2, **self.registers)))


def _segment(selector: int, kind: int, *, long: bool = False) -> Segment:
    """A flat segment of 4 GiB."""
    return Segment(
        base=0, limit=0xFFFFFFFF, selector=selector, type=kind, present=1, db=not long, s=1, l=long, g=1, unusable=0
    )
