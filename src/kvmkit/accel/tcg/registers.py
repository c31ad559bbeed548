"""A software CPU's registers to and from KVM's structures.

Nothing here touches Unicorn; `cpu` brings its derived state (hflags, TLB, FPU status) up to date afterwards.
"""

import cython
from cython.cimports.kvmkit.accel.tcg.layout import (
    ARITHMETIC_FLAGS,
    CC_OP_EFLAGS,
    ENV_DR,
    ENV_EFER,
    FLAG_DF,
    HF2_GIF,
    HF2_NMI,
    HF_INHIBIT_IRQ,
    Env,
    SegmentCache,
)
from cython.cimports.kvmkit.accel.tcg.registers import field64
from cython.cimports.libc.stdint import uint32_t, uint64_t
from cython.cimports.libc.string import memset

from kvmkit.accel.structures import DebugRegs, Events, Regs, Sregs
from kvmkit.errors import BadInput

# In the order of x86's encoding (as the CPU keeps them) under their names in struct kvm_regs.
GENERAL = ("rax", "rcx", "rdx", "rbx", "rsp", "rbp", "rsi", "rdi", *(f"r{n}" for n in range(8, 16)))
SEGMENTS = ("es", "cs", "ss", "ds", "fs", "gs")
CR0_RESET = 0x60000010
KNOWN_EFER = 0xFD01 | 0x1000  # SCE, LME, LMA, NXE, SVME, FFXSR and their neighbours


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_flags(env: cython.pointer(Env), flags: uint64_t) -> cython.void:
    env.cc_src = flags & ARITHMETIC_FLAGS
    env.cc_dst = 0
    env.cc_op = CC_OP_EFLAGS
    env.df = -1 if flags & FLAG_DF else 1
    env.eflags = (flags & ~cython.cast(uint64_t, ARITHMETIC_FLAGS | FLAG_DF)) | 2


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def fixed_segment(env: cython.pointer(Env), index: cython.int, selector: uint32_t, flags: uint32_t) -> cython.void:
    """A flat segment, as SYSCALL and SYSENTER load them without reading a descriptor."""
    env.segs[index].selector = selector
    env.segs[index].base = 0
    env.segs[index].limit = 0xFFFFFFFF
    env.segs[index].flags = flags


@cython.cfunc
def get_regs(env: cython.pointer(Env), flags: uint64_t) -> bytes:
    regs = Regs()
    for i in range(16):
        setattr(regs, GENERAL[i], env.regs[i])
    regs.rip = env.eip
    regs.rflags = flags
    return bytes(regs)


@cython.cfunc
def set_regs(env: cython.pointer(Env), data: bytes):
    regs = Regs.from_buffer_copy(data)
    for i in range(16):
        env.regs[i] = getattr(regs, GENERAL[i])
    env.eip = regs.rip
    set_flags(env, regs.rflags & 0x3F7FD5)


@cython.cfunc
def segment_out(cache: cython.pointer(SegmentCache), segment):
    flags: uint32_t = cache.flags
    segment.base = cache.base
    segment.limit = cache.limit
    segment.selector = cache.selector
    segment.type = (flags >> 8) & 15
    segment.s = (flags >> 12) & 1
    segment.dpl = (flags >> 13) & 3
    segment.present = (flags >> 15) & 1
    segment.avl = (flags >> 20) & 1
    segment.l = (flags >> 21) & 1
    segment.db = (flags >> 22) & 1
    segment.g = (flags >> 23) & 1
    segment.unusable = 0 if segment.present else 1


@cython.cfunc
def segment_in(cache: cython.pointer(SegmentCache), segment):
    cache.base = segment.base
    cache.limit = segment.limit
    cache.selector = segment.selector
    cache.flags = 0
    if not segment.unusable:
        cache.flags = (
            (segment.type & 15) << 8
            | (segment.s & 1) << 12
            | (segment.dpl & 3) << 13
            | (segment.present & 1) << 15
            | (segment.avl & 1) << 20
            | (segment.l & 1) << 21
            | (segment.db & 1) << 22
            | (segment.g & 1) << 23
        )


@cython.cfunc
def get_sregs(env: cython.pointer(Env), apic_base: uint64_t, cr8: uint64_t) -> bytes:
    sregs = Sregs()
    for i in range(6):
        segment_out(cython.address(env.segs[i]), getattr(sregs, SEGMENTS[i]))
    segment_out(cython.address(env.ldt), sregs.ldt)
    segment_out(cython.address(env.tr), sregs.tr)
    sregs.gdt.base, sregs.gdt.limit = env.gdt.base, env.gdt.limit & 0xFFFF
    sregs.idt.base, sregs.idt.limit = env.idt.base, env.idt.limit & 0xFFFF
    sregs.cr0, sregs.cr2, sregs.cr3, sregs.cr4 = env.cr[0], env.cr[2], env.cr[3], env.cr[4]
    sregs.cr8 = cr8
    sregs.efer = field64(env, ENV_EFER)[0]
    sregs.apic_base = apic_base
    return bytes(sregs)


@cython.cfunc
def set_sregs(env: cython.pointer(Env), data: bytes):
    sregs = Sregs.from_buffer_copy(data)
    long_mode = sregs.efer & 0x400
    if long_mode and not (sregs.cr0 & 0x80000001 == 0x80000001 and sregs.cr4 & 0x20):
        raise BadInput("tcg: a state in long mode without paging and PAE can't be")
    if sregs.efer & ~KNOWN_EFER:
        raise BadInput(f"tcg: EFER {sregs.efer:#x} has bits that no CPU here knows")
    for i in range(6):
        segment_in(cython.address(env.segs[i]), getattr(sregs, SEGMENTS[i]))
    segment_in(cython.address(env.ldt), sregs.ldt)
    segment_in(cython.address(env.tr), sregs.tr)
    env.gdt.base, env.gdt.limit = sregs.gdt.base, sregs.gdt.limit
    env.idt.base, env.idt.limit = sregs.idt.base, sregs.idt.limit
    env.cr[0], env.cr[2], env.cr[3], env.cr[4] = sregs.cr0 | 0x10, sregs.cr2, sregs.cr3, sregs.cr4
    field64(env, ENV_EFER)[0] = sregs.efer


@cython.cfunc
def get_debugregs(env: cython.pointer(Env)) -> bytes:
    dr = field64(env, ENV_DR)
    debug = DebugRegs()
    for i in range(4):
        debug.db[i] = dr[i]
    debug.dr6, debug.dr7 = dr[6], dr[7]
    return bytes(debug)


@cython.cfunc
def set_debugregs(env: cython.pointer(Env), data: bytes):
    dr = field64(env, ENV_DR)
    debug = DebugRegs.from_buffer_copy(data)
    for i in range(4):
        dr[i] = debug.db[i]
    dr[6], dr[7] = debug.dr6, debug.dr7


@cython.cfunc
def get_events(env: cython.pointer(Env), nmi_pending: cython.bint) -> bytes:
    """Between two `run`s no exception is half delivered: what remains is the shadow of STI and MOV SS, and NMI."""
    events = Events()
    events.interrupt_shadow = 1 if env.hflags & HF_INHIBIT_IRQ else 0
    events.nmi_masked = 1 if env.hflags2 & HF2_NMI else 0
    events.nmi_pending = nmi_pending
    events.flags = 0x5  # KVM_VCPUEVENT_VALID_NMI_PENDING, KVM_VCPUEVENT_VALID_SHADOW
    return bytes(events)


@cython.cfunc
def set_events(env: cython.pointer(Env), data: bytes):
    events = Events.from_buffer_copy(data)
    if events.exception_injected or events.exception_pending or events.interrupt_injected or events.nmi_injected:
        raise BadInput("tcg: a state with a half-delivered exception or interrupt can't be taken over")
    env.hflags &= ~cython.cast(uint32_t, HF_INHIBIT_IRQ)
    if events.interrupt_shadow:
        env.hflags |= HF_INHIBIT_IRQ
    env.hflags2 &= ~cython.cast(uint32_t, HF2_NMI)
    if events.nmi_masked:
        env.hflags2 |= HF2_NMI


@cython.cfunc
def reset(env: cython.pointer(Env)):
    """The state after RESET (Intel SDM volume 3, 9.1.1): real mode, about to fetch at 0xfffffff0."""
    memset(env, 0, cython.sizeof(Env))
    for i in range(6):
        env.segs[i].limit = 0xFFFF
        env.segs[i].flags = 0x9300
    env.segs[1].selector = 0xF000
    env.segs[1].base = 0xFFFF0000
    env.segs[1].flags = 0x9B00
    env.ldt.limit = 0xFFFF
    env.ldt.flags = 0x8200
    env.tr.limit = 0xFFFF
    env.tr.flags = 0x8B00
    env.gdt.limit = 0xFFFF
    env.idt.limit = 0xFFFF
    env.regs[2] = 0x600  # EDX: family 6
    env.eip = 0xFFF0
    env.cr[0] = CR0_RESET
    env.a20_mask = -1
    env.hflags2 = HF2_GIF
    set_flags(env, 2)
    field64(env, ENV_EFER)[0] = 0
    dr = field64(env, ENV_DR)
    dr[6], dr[7] = 0xFFFF0FF0, 0x400
