"""A software CPU's state in and out, in KVM's formats."""

import cython
from cython.cimports.kvmkit.accel.tcg.core import LEAVES, CpuCore, read_msr, write_msr
from cython.cimports.kvmkit.accel.tcg.layout import ENV_EFER, ENV_XCR0, XSAVE_AREA_BYTES, u8p
from cython.cimports.kvmkit.accel.tcg.msrs import known_msr, machine_msr
from cython.cimports.kvmkit.accel.tcg.registers import (
    field64,
    get_debugregs,
    get_events,
    get_regs,
    get_sregs,
    set_debugregs,
    set_events,
    set_regs,
    set_sregs,
)
from cython.cimports.kvmkit.accel.tcg.threads import pthread_mutex_lock, pthread_mutex_unlock
from cython.cimports.libc.stdint import uint32_t, uint64_t

from kvmkit.accel.state import VCPU_STATE
from kvmkit.errors import BadInput, HostError

# MSRs in saved state: those that Linux and firmware set, in the order they are to be restored.
SAVED_MSRS = (
    *(0x10, 0x1B, 0x174, 0x175, 0x176, 0x1A0, 0x277, 0x2FF, *range(0x200, 0x210), 0x250, 0x258, 0x259),
    *(*range(0x268, 0x270), 0x4B564D00, 0x4B564D01, 0x6E0, *range(0xC0000080, 0xC0000085)),
    *range(0xC0000100, 0xC0000104),
)
RAX, RCX, RDX = 0, 1, 2


@cython.cclass
class CpuState(CpuCore):
    """`get` and `set`; what they need of the translator, `cpu` gives by the methods that do nothing here."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flags(self) -> uint64_t:
        """RFLAGS."""
        return 2

    @cython.cfunc
    def set_leaves(self, table: dict):
        """What CPUID shows: (leaf, subleaf or None) to the four registers."""
        if len(table) > LEAVES:
            raise HostError("tcg: the CPUID table is too long")
        self.leaf_count = 0
        for (leaf, subleaf), registers in table.items():
            entry = cython.address(self.leaves[self.leaf_count])
            entry.leaf = leaf
            entry.subleaf = subleaf or 0
            entry.indexed = subleaf is not None
            for i in range(4):
                entry.registers[i] = registers[i]
            self.leaf_count += 1

    @cython.cfunc
    def set_derived(self):
        """Bring what the translator derives from the registers up to date with them."""

    @cython.cfunc
    def xsave_area(self, area: u8p, store: cython.bint):
        """Write the FPU's state to `area`, or take it from there; XSAVE_AREA_BYTES."""

    @cython.cfunc
    def translator_msr(self, store: cython.bint):
        """What RDMSR or WRMSR does with an MSR that the translator keeps."""

    @cython.cfunc
    def page_of(self, address: uint64_t) -> uint64_t:
        """The physical page of a linear one; all ones: none."""
        return 0

    @cython.cfunc
    def refuse_running(self):
        if self.running:
            raise HostError("tcg: a vCPU's state can't be had while it runs; pause it first")

    def get(self, name: str) -> bytes:
        """See VirtualCpu."""
        self.refuse_running()
        if name == "regs":
            return get_regs(self.env, self.flags())
        if name == "sregs":
            return get_sregs(self.env, self.chips.lapic.apic_base, self.chips.lapic.tpr())
        if name == "debugregs":
            return get_debugregs(self.env)
        if name == "events":
            return get_events(self.env, self.chips.lapic.nmi_pending)
        if name == "mp_state":
            return (3 if self.halted else 0).to_bytes(4, "little")
        if name == "lapic":
            return self.chips.get("lapic")
        if name == "xcrs":
            xcr0: uint64_t = field64(self.env, ENV_XCR0)[0]
            return (1).to_bytes(8, "little") + bytes(8) + xcr0.to_bytes(8, "little") + bytes(392 - 24)
        if name == "xsave":
            area = bytearray(4096)
            view: cython.uchar[:] = area
            self.xsave_area(cython.address(view[0]), True)
            return bytes(area)
        if name == "msrs":
            return b"".join(
                index.to_bytes(4, "little") + bytes(4) + self.msr(index).to_bytes(8, "little") for index in SAVED_MSRS
            )
        raise KeyError(name)

    def set(self, name: str, data: bytes) -> None:
        """See VirtualCpu."""
        self.refuse_running()
        size = VCPU_STATE[name]
        if size is not None and len(data) != size:
            raise BadInput(f"tcg: {name} state is {size} bytes, not {len(data)}")
        if name == "regs":
            set_regs(self.env, data)
        elif name == "sregs":
            set_sregs(self.env, data)
            if not self.chips.lapic.restore_base(int.from_bytes(data[272:280], "little")):
                raise BadInput("tcg: the APIC base MSR names a mode that can't be")
            self.chips.lapic.set_tpr(data[256] & 15)
        elif name == "debugregs":
            set_debugregs(self.env, data)
        elif name == "events":
            set_events(self.env, data)
            self.chips.lapic.nmi_pending = data[13] != 0
        elif name == "mp_state":
            self.halted = data[0] == 3
        elif name == "lapic":
            self.chips.set("lapic", data)
        elif name == "xcrs":
            field64(self.env, ENV_XCR0)[0] = int.from_bytes(data[16:24], "little") | 1
        elif name == "xsave":
            view: cython.uchar[:] = bytearray(data.ljust(XSAVE_AREA_BYTES, b"\0"))
            self.xsave_area(cython.address(view[0]), False)
        elif name == "msrs":
            if len(data) % 16:
                raise BadInput("tcg: MSR state is 16 bytes for each")
            for at in range(0, len(data), 16):
                self.set_msr(
                    int.from_bytes(data[at : at + 4], "little"), int.from_bytes(data[at + 8 : at + 16], "little")
                )
        self.set_derived()
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.mutex))
            self.attention = 1
            self.rearm()
            pthread_mutex_unlock(cython.address(self.mutex))

    @cython.cfunc
    def msr(self, index: uint32_t) -> object:
        """An MSR as the guest would read it."""
        value: uint64_t = 0
        if machine_msr(index):
            read_msr(self, index, cython.address(value), self.ticks())
            return value
        env = self.env
        a, c, d = env.regs[RAX], env.regs[RCX], env.regs[RDX]
        env.regs[RCX] = index
        self.translator_msr(False)
        value = cython.cast(uint32_t, env.regs[RAX]) | env.regs[RDX] << 32
        env.regs[RAX], env.regs[RCX], env.regs[RDX] = a, c, d
        return value

    @cython.cfunc
    def set_msr(self, index: uint32_t, value: uint64_t):
        """Set an MSR, also where the guest could not (EFER in long mode)."""
        env = self.env
        if index == 0xC0000080:
            field64(env, ENV_EFER)[0] = value
        elif machine_msr(index):
            if not write_msr(self, index, value, self.ticks()):
                raise BadInput(f"tcg: MSR {index:#x} can't be set to {value:#x}")
        elif known_msr(index):
            a, c, d = env.regs[RAX], env.regs[RCX], env.regs[RDX]
            env.regs[RCX] = index
            env.regs[RAX] = cython.cast(uint32_t, value)
            env.regs[RDX] = value >> 32
            self.translator_msr(True)
            env.regs[RAX], env.regs[RCX], env.regs[RDX] = a, c, d
        else:
            raise BadInput(f"tcg: there is no MSR {index:#x}")

    def translate(self, address: uint64_t):
        """See VirtualCpu."""
        self.refuse_running()
        page: uint64_t = self.page_of(address & ~cython.cast(uint64_t, 0xFFF))
        if page == cython.cast(uint64_t, -1):
            return None
        return page | (address & 0xFFF)

    def close(self) -> None:
        """See VirtualCpu."""
        self.refuse_running()
