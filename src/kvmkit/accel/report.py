"""What to show when a guest can't go on: the reason, the registers and the code, decoded. For either engine."""

from __future__ import annotations

from kvmkit.accel import Exit, ExitReason, VirtualCpu
from kvmkit.accel.structures import Regs, Segment, Sregs
from kvmkit.errors import KvmkitError
from kvmkit.memory import GuestMemory

CODE_BEFORE = 8
CODE_BYTES = 24
STACK_WORDS = 8
LINE = 4  # registers in a line

_REASONS = {
    ExitReason.KICKED: "stopped from outside",
    ExitReason.SHUTDOWN: "the guest triple-faulted",
    ExitReason.SYSTEM_EVENT: "the guest asked to be stopped",
    ExitReason.FAILED_ENTRY: "the processor refused the guest's state",
    ExitReason.INTERNAL_ERROR: "the engine can't go on",
    ExitReason.HALTED: "the guest halted",
}

_CR0 = {0: "PE", 1: "MP", 2: "EM", 3: "TS", 4: "ET", 5: "NE", 16: "WP", 18: "AM", 29: "NW", 30: "CD", 31: "PG"}
_CR4 = {0: "VME", 1: "PVI", 2: "TSD", 3: "DE", 4: "PSE", 5: "PAE", 6: "MCE", 7: "PGE", 8: "PCE", 9: "OSFXSR"} | {
    10: "OSXMMEXCPT", 11: "UMIP", 12: "LA57", 16: "FSGSBASE", 17: "PCIDE", 18: "OSXSAVE", 20: "SMEP", 21: "SMAP"
}  # fmt: skip
_EFER = {0: "SCE", 8: "LME", 10: "LMA", 11: "NXE", 12: "SVME"}
_RFLAGS = {0: "CF", 2: "PF", 4: "AF", 6: "ZF", 7: "SF", 8: "TF", 9: "IF", 10: "DF", 11: "OF", 14: "NT", 16: "RF"} | {
    17: "VM", 18: "AC"
}  # fmt: skip


def report(vcpu: VirtualCpu, memory: GuestMemory, exit_: Exit) -> str:
    """Some twenty lines about why `vcpu` came back with `exit_`. Never raises for what the guest holds."""
    detail = f": {exit_.detail}" if exit_.detail else ""
    head = f"vCPU {vcpu.index}: {_REASONS[exit_.reason]}{detail}"
    try:
        regs = Regs.from_buffer_copy(vcpu.get("regs"))
        sregs = Sregs.from_buffer_copy(vcpu.get("sregs"))
    except KvmkitError as error:
        return f"{head}\n  its registers can't be read: {error}"
    mode, bits = _mode(regs, sregs)
    lines = [head, f"  {mode}, ring {_ring(regs, sregs)}, at {sregs.cs.selector:04x}:{regs.rip:016x}"]
    names = [name for name, *_ in Regs._fields_ if name not in ("rip", "rflags")]
    for i in range(0, len(names), LINE):
        lines.append("  " + "  ".join(f"{name:<3} {getattr(regs, name):016x}" for name in names[i : i + LINE]))
    lines.append(f"  rflags {regs.rflags:08x} [{_bits(regs.rflags, _RFLAGS)}]  iopl {regs.rflags >> 12 & 3}")
    for names_ in (("cs", "ss"), ("ds", "es"), ("fs", "gs"), ("tr", "ldt")):
        lines.append("  " + "   ".join(_segment(name, getattr(sregs, name)) for name in names_))
    lines.append(
        f"  gdt {sregs.gdt.base:016x} limit {sregs.gdt.limit:04x}   idt {sregs.idt.base:016x} limit"
        f" {sregs.idt.limit:04x}"
    )
    lines.append(f"  cr0 {sregs.cr0:08x} [{_bits(sregs.cr0, _CR0)}]  cr2 {sregs.cr2:016x}  cr3 {sregs.cr3:016x}")
    lines.append(f"  cr4 {sregs.cr4:08x} [{_bits(sregs.cr4, _CR4)}]  efer {sregs.efer:x} [{_bits(sregs.efer, _EFER)}]")
    lines.append(f"  code  {_code(vcpu, memory, regs, sregs)}")
    lines.append(f"  stack {_stack(vcpu, memory, regs, sregs, bits // 8)}")
    return "\n".join(line.rstrip() for line in lines)


def _mode(regs: Regs, sregs: Sregs) -> tuple[str, int]:
    """The processor's mode in words, and the bits of its stack's words."""
    if not sregs.cr0 & 1:
        return "real mode", 16
    if regs.rflags & 1 << 17:
        return "virtual 8086 mode", 16
    if sregs.efer & 1 << 10:
        return ("long mode", 64) if sregs.cs.l else ("long mode, 32-bit code", 32)
    paging = "paged" if sregs.cr0 >> 31 else "not paged"
    bits = 32 if sregs.cs.db else 16
    return f"protected mode, {bits}-bit, {paging}", bits


def _ring(regs: Regs, sregs: Sregs) -> int:
    return int(sregs.ss.dpl) if sregs.cr0 & 1 and not regs.rflags & 1 << 17 else 0


def _bits(value: int, names: dict[int, str]) -> str:
    return " ".join(name for bit, name in names.items() if value >> bit & 1)


def _segment(name: str, segment: Segment) -> str:
    if segment.unusable or not segment.present:
        return f"{name:<3} {segment.selector:04x} {'not usable':<40}"
    width = "64" if segment.l else "32" if segment.db else "16"
    kind = f"type {segment.type:x} dpl {segment.dpl} {width}"
    return f"{name:<3} {segment.selector:04x} base {segment.base:016x} limit {segment.limit:08x} {kind:<16}"


def _bytes(vcpu: VirtualCpu, memory: GuestMemory, address: int, length: int) -> list[int | None]:
    """Bytes at a linear address; None where nothing is mapped, or what is mapped is not RAM."""
    found: list[int | None] = []
    page = -1
    base: int | None = None
    for linear in range(address, address + length):
        linear &= 0xFFFFFFFFFFFFFFFF
        if linear >> 12 != page:
            page = linear >> 12
            try:
                base = vcpu.translate(page << 12)
            except KvmkitError:
                base = None
        try:
            found.append(None if base is None else memory.read(base + (linear & 0xFFF), 1)[0])
        except (ValueError, OverflowError):
            found.append(None)
    return found


def _code(vcpu: VirtualCpu, memory: GuestMemory, regs: Regs, sregs: Sregs) -> str:
    """The bytes around the next instruction; it starts at the one in angle brackets."""
    base = 0 if sregs.cs.l else sregs.cs.base
    start = max(base + regs.rip - CODE_BEFORE, 0)
    shown = []
    for i, value in enumerate(_bytes(vcpu, memory, start, CODE_BYTES)):
        text = "--" if value is None else f"{value:02x}"
        shown.append(f"<{text}>" if start + i == base + regs.rip else text)
    return " ".join(shown)


def _stack(vcpu: VirtualCpu, memory: GuestMemory, regs: Regs, sregs: Sregs, size: int) -> str:
    base = 0 if sregs.cs.l else sregs.ss.base
    raw = _bytes(vcpu, memory, base + regs.rsp, STACK_WORDS * size)
    words = []
    for i in range(0, len(raw), size):
        word = raw[i : i + size]
        whole = [byte for byte in word if byte is not None]
        words.append(bytes(whole[::-1]).hex() if len(whole) == size else "-" * 2 * size)
    return " ".join(words)
