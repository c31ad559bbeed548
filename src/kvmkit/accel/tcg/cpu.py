"""A PC's CPU in software: Unicorn, with what a whole machine needs put in the place of what Unicorn leaves out.

Unicorn is QEMU's translator without its interrupts, MSRs and ports. Its static library is linked into this
module, and the linker's --wrap gives us the functions at which the machine begins (the `__wrap_` ones below);
exceptions and interrupts are delivered by the translator's own code, in every mode. docs/tcg.md tells the whole.

One vCPU per VM, run by one thread. Other threads touch it through `mutex` and three flags: `attention` (look
at the next block boundary), `kicked` and the TB exit counter behind `icount_high`.
"""

import cython
from cython.cimports.kvmkit.accel.tcg.core import *
from cython.cimports.kvmkit.accel.tcg.decode import int1_length, is_hypercall, is_wrmsr, port_exit
from cython.cimports.kvmkit.accel.tcg.layout import *
from cython.cimports.kvmkit.accel.tcg.msrs import control_takes, known_msr, machine_msr, msr_takes
from cython.cimports.kvmkit.accel.tcg.pages import mark_page
from cython.cimports.kvmkit.accel.tcg.pvclock import PvClock
from cython.cimports.kvmkit.accel.tcg.registers import *
from cython.cimports.kvmkit.accel.tcg.threads import *
from cython.cimports.kvmkit.accel.tcg.unicorn import *
from cython.cimports.kvmkit.accel.tcg.vcpu_state import CpuState
from cython.cimports.kvmkit.bus.space import AddressSpace
from cython.cimports.kvmkit.memory.ram import GuestMemory
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t, uintptr_t
from cython.cimports.libc.string import memcpy

from kvmkit.accel import Exit, ExitReason, cpuid
from kvmkit.accel.tcg import features
from kvmkit.errors import HostError

MSR_EFER = cython.declare(uint32_t, 0xC0000080)
# When this module was loaded: the farther away, the better is the TSC's rate that is reckoned from it.
LOADED_TSC = cython.declare(uint64_t, host_ticks(cython.NULL))
LOADED = cython.declare(int64_t, monotonic())


@cython.cclass
class TcgCpu(CpuState):
    """The one vCPU of a VM of the software engine, with its interrupt controllers and timers."""

    def __cinit__(self, memory: GuestMemory, ports: AddressSpace, mmio: AddressSpace, model: str):
        check(uc_open(UC_ARCH_X86, UC_MODE_64, cython.address(self.uc)), "open")
        check(uc_ctl_set_cpu_model(self.uc, UC_CPU_X86_EPYC), "choose a CPU model")
        check(uc_ctl_tlb_mode(self.uc, UC_TLB_CPU), "choose the MMU")
        check(uc_ctl_exits_enable(self.uc), "enable exits")
        self.calibrate()
        self.map_memory()
        reset(self.env)  # the library starts with bits in CR4 that CPUID would show again
        self.become(model)
        self.clock = PvClock(memory, LOADED_TSC, LOADED, monotonic())
        hook: uc_hook
        check(uc_hook_add(self.uc, cython.address(hook), UC_HOOK_INTR, cython.cast(cython.p_void, on_exception),
                          cython.cast(cython.p_void, self), 1, 0), "hook exceptions")  # fmt: skip
        check(uc_hook_add(self.uc, cython.address(hook), UC_HOOK_INSN_INVALID, cython.cast(cython.p_void, on_invalid),
                          cython.cast(cython.p_void, self), 1, 0), "hook #UD")  # fmt: skip
        check(uc_hook_add(self.uc, cython.address(hook), UC_HOOK_MEM_WRITE_PROT,
                          cython.cast(cython.p_void, on_rom_write),
                          cython.cast(cython.p_void, self), 1, 0), "hook writes to a ROM")  # fmt: skip
        self.set_derived()

    def __dealloc__(self):
        if self.uc != cython.NULL:
            uc_close(self.uc)

    @cython.cfunc
    def calibrate(self):
        """Find the CPU inside Unicorn and refuse a library in which things do not stand where `layout` says."""
        uc: u8p = cython.cast(u8p, self.uc)
        value: uint64_t = 0x1122334455667788
        check(uc_reg_write(self.uc, UC_X86_REG_RAX, cython.address(value)), "write a register")
        cs: u8p = cython.cast(u8pp, uc + UC_CPU)[0]
        env: u8p = cs + CPU_ENV
        fits = (
            cython.cast(u8pp, cs + CPU_UC)[0] == uc
            and cython.cast(u8pp, cs + CPU_ENV_POINTER)[0] == env
            and cython.cast(u8pp, env + ENV_UC)[0] == uc
            and cython.cast(cython.pointer(uint64_t), env)[0] == value
        )
        register: cython.int
        offset: cython.int
        for register, offset, sample in (
            (UC_X86_REG_CR3, 424 + 24, 0x123000),
            (UC_X86_REG_DR7, ENV_DR + 56, 0x400),
            (UC_X86_REG_FS_BASE, 184 + 4 * 24 + 8, 0x7654321),
        ):
            value = sample
            uc_reg_write(self.uc, register, cython.address(value))
            fits = fits and cython.cast(cython.pointer(uint64_t), env + offset)[0] == value
        value = 0
        uc_reg_write(self.uc, UC_X86_REG_CR3, cython.address(value))
        # Between two flags that are always false and true here stands the one that is to be set.
        fits = fits and uc[UC_NO_EXIT_REQUEST] == 0 and uc[UC_NO_EXIT_REQUEST + 1] == 1
        if not fits:
            raise HostError("tcg: this build of Unicorn is not 2.1.4 as kvmkit knows it; rebuild with unicorn==2.1.4")
        self.cs = cs
        self.env = cython.cast(cython.pointer(Env), env)
        self.icount_high = cython.cast(cython.pointer(uint16_t), cython.cast(u8pp, cs + CPU_ICOUNT_POINTER)[0]) + 1
        cython.cast(cython.pp_void, cs + CPU_OPAQUE)[0] = cython.cast(cython.p_void, self)
        # Leave translated code at block boundaries only: after a memory access the instruction would run twice.
        uc[UC_NO_EXIT_REQUEST] = 1

    @cython.cfunc
    def become(self, model: str):
        """Be the CPU that `--cpu model` names: what Unicorn translates, and what CPUID shows."""
        env = cython.cast(u8p, self.env)
        vendor: bytes = features.VENDOR
        brand: bytes = features.BRAND.encode().ljust(48, b"\0")
        memcpy(env + ENV_CPUID_VENDOR, cython.cast(cython.p_char, vendor), 12)
        memcpy(env + ENV_CPUID_MODEL, cython.cast(cython.p_char, brand), 48)
        field32(self.env, ENV_CPUID_VERSION)[0] = features.SIGNATURE
        field32(self.env, ENV_CPUID_LEVEL)[0] = features.LEVEL
        field32(self.env, ENV_CPUID_XLEVEL)[0] = features.EXTENDED_LEVEL
        self.set_words(features.all_words())
        leaves = {}
        values: uint32_t[4]
        for leaf, subleaf in features.LEAVES:
            real_cpuid(self.env, leaf, subleaf or 0, cython.address(values[0]), cython.address(values[1]),
                       cython.address(values[2]), cython.address(values[3]))  # fmt: skip
            leaves[leaf, subleaf] = (values[0], values[1], values[2], values[3])
        table = cpuid.for_vcpu(cpuid.select(model, features.with_machine(leaves)), 0, 1)
        self.set_words(features.words_of(table))
        self.cr4_bits = features.cr4_bits(table)
        self.set_leaves(table)

    @cython.cfunc
    def set_words(self, words):
        for word in range(features.WORD_COUNT):
            field64(self.env, ENV_FEATURES + 8 * word)[0] = words.get(word, 0)

    @cython.cfunc
    def map_memory(self):
        """RAM as it is, and everything else up to 2^PHYSICAL_BITS as memory-mapped I/O."""
        top: uint64_t = 0
        for gpa, host, size in self.memory.mapped():
            ram = cython.cast(cython.p_void, cython.cast(uint64_t, host))
            check(uc_mem_map_ptr(self.uc, gpa, size, UC_PROT_ALL, ram), "map guest memory")
            lookup: cython.pp_void = cython.cast(cython.pp_void, cython.cast(u8p, self.uc) + UC_MEMORY_MAPPING)
            region = cython.cast(region_function, lookup[0])
            # Below any snapshot level: Unicorn then leaves the TLB's dirty marks to us (see Translation below).
            cython.cast(cython.pointer(int32_t), region(self.uc, gpa) + REGION_PRIORITY)[0] = -1
            top = gpa + size
        four: uint64_t = cython.cast(uint64_t, 1) << 32
        rom: uint64_t = four
        if self.memory.rom is not None:
            rom, host, size = self.memory.rom
            ram = cython.cast(cython.p_void, cython.cast(uint64_t, host))
            check(uc_mem_map_ptr(self.uc, rom, size, UC_PROT_ALL, ram), "map a ROM")
            check(uc_mem_protect(self.uc, rom, size, UC_PROT_READ | UC_PROT_EXEC), "protect a ROM")
        self.windows[0].base = self.memory.low
        self.windows[1].base = max(top, four)
        for i in range(2):
            self.windows[i].cpu = cython.cast(cython.p_void, self)
            end: uint64_t = rom if i == 0 else cython.cast(uint64_t, 1) << PHYSICAL_BITS
            user = cython.cast(cython.p_void, cython.address(self.windows[i]))
            check(uc_mmio_map(self.uc, self.windows[i].base, end - self.windows[i].base, on_mmio_read, user,
                              on_mmio_write, user), "map devices")  # fmt: skip

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drop_stale(self) -> cython.void:
        """Forget translations of what was written, on the CPU's own thread between two blocks. Mutex held."""
        i: cython.int
        for i in range(self.stale_count):
            invalidate_code(self.uc, self.stale[i].start, self.stale[i].end)
        self.stale_count = 0

    # Running.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def loop(self) -> cython.int:
        """Run until there is something to tell: a kick, a triple fault, or what Unicorn can't go on from."""
        error: uc_err
        halted = cython.cast(cython.pointer(uint32_t), cython.cast(u8p, self.cs) + CPU_HALTED)
        request = cython.cast(cython.pointer(uint32_t), cython.cast(u8p, self.cs) + CPU_INTERRUPT_REQUEST)
        while True:
            if self.kicked:
                return STOPPED
            if self.halted:
                if not self.wait():
                    return STOPPED
                self.halted = False
            request[0] |= INTERRUPT_HARD  # always: so that every block boundary asks us
            halted[0] = 0
            if self.attention:
                self.icount_high[0] = 0xFFFF
            error = uc_emu_start(self.uc, self.env.eip, 0, 0, 0)
            if error:
                self.halted = False
                return -cython.cast(cython.int, error)
            if halted[0]:
                self.counts[EXIT_HALT] += 1
                self.halted = True
            elif not self.kicked and field32(self.env, ENV_OLD_EXCEPTION)[0] == 8:
                return TRIPLE_FAULT

    def run(self):
        """Run the guest; see VirtualCpu."""
        result: cython.int
        self.running = True
        with cython.nogil:
            result = self.loop()
        self.running = False
        if self.failure is not None:
            failure, self.failure = self.failure, None
            raise failure
        if result == STOPPED:
            self.kicked = 0
            self.counts[EXIT_KICK] += 1
            return Exit(ExitReason.KICKED)
        if result == TRIPLE_FAULT:
            return Exit(ExitReason.SHUTDOWN, detail="triple fault")
        text = uc_strerror(cython.cast(uc_err, -result)).decode()
        return Exit(ExitReason.INTERNAL_ERROR, -result, f"the software CPU can't go on: {text}")

    # What saved state needs of the translator.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def ticks(self) -> uint64_t:
        return read_tsc(self.env)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flags(self) -> uint64_t:
        return flags_of(self.env)

    @cython.cfunc
    def set_derived(self):
        inhibit: uint32_t = self.env.hflags & HF_INHIBIT_IRQ
        update_hflags(self.env)
        self.env.hflags |= inhibit
        update_fp_status(self.env)
        update_mxcsr_status(self.env)
        tlb_flush(self.cs)

    @cython.cfunc
    def xsave_area(self, area: u8p, store: cython.bint):
        if store:
            save_xsave_area(self.cs, area)
        else:
            load_xsave_area(self.cs, area)

    @cython.cfunc
    def translator_msr(self, store: cython.bint):
        if store:
            real_wrmsr(self.env)
        else:
            real_rdmsr(self.env)

    @cython.cfunc
    def page_of(self, address: uint64_t) -> uint64_t:
        attributes: uint32_t = 0
        return walk_page(self.cs, address, cython.address(attributes))


@cython.cfunc
def check(error: uc_err, what: str):
    """Raise when Unicorn refuses."""
    if error:
        raise HostError(f"tcg: can't {what}: {uc_strerror(error).decode()}")


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def cpu_of(env: cython.p_void) -> cython.p_void:
    """The TcgCpu behind a CPUX86State, as calibrate left it there; NULL before that."""
    return cython.cast(cython.pp_void, cython.cast(u8p, env) - CPU_ENV + CPU_OPAQUE)[0]


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def flags_of(env: cython.pointer(Env)) -> uint64_t:
    """RFLAGS, gathered from where the CPU keeps its parts."""
    flags: uint64_t = env.eflags | 2 | condition_flags(env, env.cc_op)
    if env.df < 0:
        flags |= FLAG_DF
    return flags


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def on_mmio_read(uc: cython.pointer(uc_engine), offset: uint64_t, size: cython.uint, user: cython.p_void) -> uint64_t:
    window = cython.cast(cython.pointer(MmioWindow), user)
    return cython.cast(read_function, memory_read)(window.cpu, window.base + offset, size)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def on_mmio_write(
    uc: cython.pointer(uc_engine), offset: uint64_t, size: cython.uint, value: uint64_t, user: cython.p_void
) -> cython.void:
    window = cython.cast(cython.pointer(MmioWindow), user)
    cython.cast(write_function, memory_write)(window.cpu, window.base + offset, size, value)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def on_rom_write(
    uc: cython.p_void, kind: cython.int, address: uint64_t, size: cython.int, value: uint64_t, user: cython.p_void
) -> cython.bint:
    cython.cast(write_function, memory_write)(user, address, size, value)  # a flash chip takes it, or nobody
    return True  # and the memory stays as it is


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def check_port(raw: cython.p_void, port: uint32_t, size: cython.int, caller: uintptr_t) -> cython.void:
    """#GP for a program that may not use this port: by IOPL, then by the TSS's bitmap. Unicorn lets everything pass.

    `caller` is where translated code called from, so that the fault names the right instruction.
    """
    env = cython.cast(cython.pointer(Env), raw)
    length: cython.int = 0
    if not env.hflags & (HF_PE | HF_GUEST):
        return
    if env.hflags & HF_PE and (env.hflags & HF_CPL > env.eflags >> 12 & 3 or env.eflags & FLAG_VM):
        restore_state(cython.cast(u8p, raw) - CPU_ENV, caller, False)
        if size == 1:
            check_port8(raw, port)
        elif size == 2:
            check_port16(raw, port)
        else:
            check_port32(raw, port)
    if env.hflags & HF_GUEST:  # its hypervisor's intercepts
        restore_state(cython.cast(u8p, raw) - CPU_ENV, caller, False)
        information: uint32_t = port_exit(env, code_byte, size, cython.address(length))
        svm_check_port(raw, port, information, length)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_inb_x86_64(env: cython.p_void, port: uint32_t) -> uint64_t:
    check_port(env, port, 1, cython.cast(uintptr_t, return_address(0)))
    return cython.cast(port_read_function, port_read)(cpu_of(env), port, 1) & 0xFF


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_inw_x86_64(env: cython.p_void, port: uint32_t) -> uint64_t:
    check_port(env, port, 2, cython.cast(uintptr_t, return_address(0)))
    return cython.cast(port_read_function, port_read)(cpu_of(env), port, 2) & 0xFFFF


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_inl_x86_64(env: cython.p_void, port: uint32_t) -> uint64_t:
    check_port(env, port, 4, cython.cast(uintptr_t, return_address(0)))
    return cython.cast(uint32_t, cython.cast(port_read_function, port_read)(cpu_of(env), port, 4))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_outb_x86_64(env: cython.p_void, port: uint32_t, value: uint32_t) -> cython.void:
    check_port(env, port, 1, cython.cast(uintptr_t, return_address(0)))
    cython.cast(port_write_function, port_write)(cpu_of(env), port, 1, value & 0xFF)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_outw_x86_64(env: cython.p_void, port: uint32_t, value: uint32_t) -> cython.void:
    check_port(env, port, 2, cython.cast(uintptr_t, return_address(0)))
    cython.cast(port_write_function, port_write)(cpu_of(env), port, 2, value & 0xFFFF)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_outl_x86_64(env: cython.p_void, port: uint32_t, value: uint32_t) -> cython.void:
    check_port(env, port, 4, cython.cast(uintptr_t, return_address(0)))
    cython.cast(port_write_function, port_write)(cpu_of(env), port, 4, value)


# Interrupts and exceptions.


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def take_interrupt(cpu: TcgCpu, cs: cython.p_void, request: cython.int) -> cython.bint:
    """Between two blocks: stop if kicked, drop stale code, and begin the next interrupt if the CPU takes one."""
    others: cython.int = request & ~INTERRUPT_HARD
    if cpu.attention:
        cpu.attention = 0
        if cpu.stale_count:
            pthread_mutex_lock(cython.address(cpu.mutex))
            cpu.drop_stale()
            pthread_mutex_unlock(cython.address(cpu.mutex))
        if cpu.kicked:
            cpu.attention = 1
            uc_emu_stop(cpu.uc)
            return False
        pthread_mutex_lock(cython.address(cpu.mutex))
        wanted: cython.int = 0
        if cpu.chips.lapic.nmi_pending:
            wanted |= INTERRUPT_NMI
        if cpu.chips.interrupt_pending():
            wanted |= INTERRUPT_HARD
        if wanted:
            cpu.attention = 1  # until it could be taken, look again at each boundary
        now: cython.int = pending_interrupt(cs, wanted)
        vector: cython.int = -1
        if now and cpu.env.hflags & HF_GUEST:
            # What is intercepted leaves the nested guest and is taken by its host later.
            pthread_mutex_unlock(cython.address(cpu.mutex))
            svm_intercept(cpu.env, SVM_EXIT_NMI if now == INTERRUPT_NMI else SVM_EXIT_INTR, 0, 0)
            pthread_mutex_lock(cython.address(cpu.mutex))
        if now == INTERRUPT_NMI:
            vector = 2
            cpu.chips.lapic.nmi_pending = False
            cpu.env.hflags2 |= HF2_NMI
        elif now == INTERRUPT_HARD:
            vector = cpu.chips.acknowledge()
        pthread_mutex_unlock(cython.address(cpu.mutex))
        if vector >= 0:
            cpu.counts[EXIT_INTERRUPT] += 1
            deliver_interrupt(cpu.env, vector, 1)
            return True
    if others:
        return real_exec_interrupt(cs, others)
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_x86_cpu_exec_interrupt_x86_64(cs: cython.p_void, request: cython.int) -> cython.bint:
    cpu: cython.p_void = cpu_of(cython.cast(u8p, cs) + CPU_ENV)
    if cpu == cython.NULL:
        return False
    return cython.cast(interrupt_function, take_interrupt)(cpu, cs, request)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def on_exception(uc: cython.pointer(uc_engine), vector: uint32_t, user: cython.p_void) -> cython.void:
    """Deliver as the processor would; a fault on the way goes back into the translator's loop from here."""
    cython.cast(count_function, count_exception)(user)
    cs: u8p = cython.cast(u8pp, cython.cast(u8p, uc) + UC_CPU)[0]
    env = cython.cast(cython.pointer(Env), cs + CPU_ENV)
    software: cython.pointer(uint32_t) = field32(env, ENV_EXCEPTION_IS_INT)
    if software[0]:  # the library has gone on to the next instruction, which is not where a fault of INT's is
        env.eip = cython.cast(get_function, interrupt_instruction)(user)
    deliver_exception(cs)
    software[0] = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_raise_interrupt_x86_64(raw: cython.p_void, vector: cython.int, length: cython.int) -> cython.void:
    """INT n and INT3: see on_exception."""
    cython.cast(set_function, note_interrupt_instruction)(cpu_of(raw), cython.cast(cython.pointer(Env), raw).eip)
    real_raise_interrupt(raw, vector, length)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_raise_interrupt_x86_64(
    raw: cython.p_void, vector: cython.int, software: cython.int, error: cython.int, length: cython.int
) -> cython.void:
    """INTO: see on_exception."""
    cython.cast(set_function, note_interrupt_instruction)(cpu_of(raw), cython.cast(cython.pointer(Env), raw).eip)
    real_raise_software(raw, vector, software, error, length)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_raise_exception_err_x86_64(raw: cython.p_void, vector: cython.int, error: cython.int) -> cython.void:
    """A fault in the IDT of long mode: the library counts 16 bytes for an entry's number, the processor 8."""
    long_mode: cython.bint = (field64(cython.cast(cython.pointer(Env), raw), ENV_EFER)[0] & 0x400) != 0
    if error & 2 and long_mode and (vector == 13 or vector == 11):
        error = error >> 1 & ~7 | 2
    real_raise_error(raw, vector, error)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_do_vmexit_x86_64(raw: cython.p_void, code: uint32_t, information: uint64_t) -> cython.void:
    """A nested guest's exit. The library keeps EXITINFO1 in a signed word on the way: ports from 0x8000 spoil it."""
    real_vmexit(raw, code, cython.cast(uint32_t, information) if code == SVM_EXIT_IOIO else information)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_read_eflags_x86_64(raw: cython.p_void) -> uint64_t:
    """PUSHF stores neither RF nor VM."""
    return flags_of(cython.cast(cython.pointer(Env), raw)) & ~cython.cast(uint64_t, FLAG_RF | FLAG_VM)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_cpu_get_tsc_x86_64(raw: cython.p_void) -> uint64_t:
    """The guest's TSC, but for what a nested hypervisor adds to it."""
    cpu: cython.p_void = cpu_of(raw)
    return host_ticks(raw) + (cython.cast(get_function, get_tsc_offset)(cpu) if cpu != cython.NULL else 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def on_invalid(uc: cython.pointer(uc_engine), user: cython.p_void) -> cython.bint:
    """#UD, and what the translator does not know: INT1, and KVM's hypercalls, which a guest that sees KVM may try."""
    cs: u8p = cython.cast(u8pp, cython.cast(u8p, uc) + UC_CPU)[0]
    env = cython.cast(cython.pointer(Env), cs + CPU_ENV)
    if field32(env, ENV_EXCEPTION_IS_INT)[0]:
        on_exception(uc, 6, user)
        return True
    if is_hypercall(env, code_byte):
        env.regs[RAX] = cython.cast(uint64_t, HYPERCALL_UNKNOWN if not env.hflags & HF_CPL else HYPERCALL_REFUSED)
        env.eip += 3
        return True
    length: cython.int = int1_length(env, code_byte)
    if length:
        env.eip += length
        cython.cast(cython.pointer(int32_t), cs + CPU_EXCEPTION_INDEX)[0] = 1
    on_exception(uc, 6, user)
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_pause_x86_64(raw: cython.p_void, length: cython.int) -> cython.void:
    """PAUSE: to the next block, by way of the loop that takes interrupts; Unicorn would leave that loop, too."""
    cython.cast(cython.pointer(Env), raw).eip += length
    cs: u8p = cython.cast(u8p, raw) - CPU_ENV
    cython.cast(cython.pointer(int32_t), cs + CPU_EXCEPTION_INDEX)[0] = -1
    leave_block(cs)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_syscall_x86_64(raw: cython.p_void, length: cython.int) -> cython.void:
    """SYSCALL (Intel SDM volume 2, or AMD APM volume 3): no memory is touched, so nothing can fault but the gate."""
    env = cython.cast(cython.pointer(Env), raw)
    if not field64(env, ENV_EFER)[0] & 1:
        raise_exception(raw, 6, 0, 0)
    star: uint64_t = field64(env, ENV_STAR)[0]
    selector: uint32_t = (star >> 32) & 0xFFFC
    flags: uint64_t = flags_of(env)
    next_ip: uint64_t = env.eip + length
    if field64(env, ENV_EFER)[0] & 0x400:
        long_code: cython.bint = (env.hflags & HF_CS64) != 0
        env.regs[RCX] = next_ip
        env.regs[R11] = flags & ~cython.cast(uint64_t, FLAG_RF)
        fixed_segment(env, R_CS, selector, 0x00AF9B00)
        fixed_segment(env, R_SS, selector + 8, 0x00CF9300)
        set_flags(env, flags & ~field64(env, ENV_FMASK)[0] & ~cython.cast(uint64_t, FLAG_RF))
        env.eip = field64(env, ENV_LSTAR)[0] if long_code else field64(env, ENV_CSTAR)[0]
    else:
        env.regs[RCX] = cython.cast(uint32_t, next_ip)
        fixed_segment(env, R_CS, selector, 0x00CF9B00)
        fixed_segment(env, R_SS, selector + 8, 0x00CF9300)
        set_flags(env, flags & ~cython.cast(uint64_t, FLAG_IF | FLAG_RF | FLAG_VM))
        env.eip = cython.cast(uint32_t, star)
    update_hflags(raw)
    cython.cast(count_function, count_syscall)(cpu_of(raw))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_sysenter_x86_64(raw: cython.p_void, length: cython.int) -> cython.void:
    """SYSENTER (Intel SDM volume 2)."""
    env = cython.cast(cython.pointer(Env), raw)
    selector: uint32_t = field32(env, ENV_SYSENTER_CS)[0] & 0xFFFC
    if selector == 0:
        raise_exception(raw, 13, 0, 0)
    set_flags(env, flags_of(env) & ~cython.cast(uint64_t, FLAG_VM | FLAG_IF | FLAG_RF))
    long_mode: cython.bint = (field64(env, ENV_EFER)[0] & 0x400) != 0
    fixed_segment(env, R_CS, selector, 0x00AF9B00 if long_mode else 0x00CF9B00)
    fixed_segment(env, R_SS, selector + 8, 0x00CF9300)
    env.regs[RSP] = field64(env, ENV_SYSENTER_ESP)[0]
    env.eip = field64(env, ENV_SYSENTER_EIP)[0]
    update_hflags(raw)
    cython.cast(count_function, count_syscall)(cpu_of(raw))


# Model-specific registers, CR8 and CPUID.


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_rdmsr_x86_64(raw: cython.p_void) -> cython.void:
    env = cython.cast(cython.pointer(Env), raw)
    msr: uint32_t = cython.cast(uint32_t, env.regs[RCX])
    if env.hflags & HF_GUEST:
        svm_intercept(raw, SVM_EXIT_MSR, 0, 0)
    if not machine_msr(msr):
        if not known_msr(msr):
            raise_exception(raw, 13, 0, 0)
        real_rdmsr(raw)
        return
    value: uint64_t = 0
    if not cython.cast(read_msr_function, read_msr)(cpu_of(raw), msr, cython.address(value), read_tsc(raw)):
        raise_exception(raw, 13, 0, 0)
    env.regs[RAX] = cython.cast(uint32_t, value)
    env.regs[RDX] = value >> 32


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_wrmsr_x86_64(raw: cython.p_void) -> cython.void:
    env = cython.cast(cython.pointer(Env), raw)
    msr: uint32_t = cython.cast(uint32_t, env.regs[RCX])
    value: uint64_t = cython.cast(uint32_t, env.regs[RAX]) | env.regs[RDX] << 32
    if env.hflags & HF_GUEST:
        svm_intercept(raw, SVM_EXIT_MSR, 1, 0)
    if not machine_msr(msr):
        if not known_msr(msr) or not msr_takes(msr, value):
            raise_exception(raw, 13, 0, 0)
        real_wrmsr(raw)
        if msr == MSR_EFER and is_wrmsr(env, code_byte):  # what follows may only be an instruction by EFER
            __wrap_helper_pause_x86_64(raw, 2)
        return
    if not cython.cast(write_msr_function, write_msr)(cpu_of(raw), msr, value, read_tsc(raw)):
        raise_exception(raw, 13, 0, 0)
    # An interrupt to oneself comes behind WRMSR, not at the end of the block.
    if cython.cast(is_function, wants_attention)(cpu_of(raw)) and is_wrmsr(env, code_byte):
        __wrap_helper_pause_x86_64(raw, 2)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_read_crN_x86_64(raw: cython.p_void, register: cython.int) -> uint64_t:
    value: uint64_t = real_read_cr(raw, register)
    if register == 8 and not cython.cast(cython.pointer(Env), raw).hflags2 & HF2_VINTR:
        value = cython.cast(get_function, get_tpr)(cpu_of(raw))
    return value


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_helper_write_crN_x86_64(raw: cython.p_void, register: cython.int, value: uint64_t) -> cython.void:
    svm_intercept(raw, SVM_EXIT_WRITE_CR + register, 0, 0)
    if not control_takes(register, value, cython.cast(get_function, get_cr4_bits)(cpu_of(raw))):
        raise_exception(raw, 13, 0, 0)
    real_write_cr(raw, register, value)
    if register == 8 and not cython.cast(cython.pointer(Env), raw).hflags2 & HF2_VINTR:
        cython.cast(set_function, set_tpr)(cpu_of(raw), value)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_cpu_x86_cpuid_x86_64(
    env: cython.p_void,
    leaf: uint32_t,
    subleaf: uint32_t,
    a: cython.pointer(uint32_t),
    b: cython.pointer(uint32_t),
    c: cython.pointer(uint32_t),
    d: cython.pointer(uint32_t),
) -> cython.void:
    """The leaves of the CPU's model; the bits that follow CR4, and sizes of saved state, are Unicorn's own."""
    real_cpuid(env, leaf, subleaf, a, b, c, d)
    if cpu_of(env) == cython.NULL:
        return
    entry: cython.pointer(CpuidLeaf) = cython.cast(cpuid_function, find_leaf)(cpu_of(env), leaf, subleaf)
    if entry == cython.NULL:
        if leaf >> 28 == 4:
            a[0] = b[0] = c[0] = d[0] = 0
        return
    if leaf == 0xD:
        if subleaf == 1:
            a[0] &= entry.registers[0]
        return
    follows: uint32_t = 0
    if leaf == 1:
        follows = c[0] & (1 << 27)  # OSXSAVE
    elif leaf == 7:
        follows = c[0] & (1 << 4)  # OSPKE
    a[0] = entry.registers[0]
    b[0] = entry.registers[1]
    c[0] = entry.registers[2] | follows
    d[0] = entry.registers[3]
    if leaf & 0x7FFFFFFF == 1 and not cython.cast(is_function, apic_enabled)(cpu_of(env)):
        d[0] &= ~cython.cast(uint32_t, 1 << 9)


# Translation. A page that holds translated code has its writes go the slow way, under every address it is mapped at;
# any other page is written at full speed. (Unicorn keeps this by virtual address, which misses aliases and, for pages
# that are executable, never returns to full speed.)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def set_page_code(uc: cython.p_void, ram: uint64_t, code: cython.bint) -> cython.void:
    cs: cython.p_void = cython.cast(cython.pp_void, cython.cast(u8p, uc) + UC_CPU)[0]
    cpu: cython.p_void = cpu_of(cython.cast(u8p, cs) + CPU_ENV)
    if cpu != cython.NULL and cython.cast(set_code_function, set_code)(cpu, ram, code):
        page: uint64_t = cython.cast(physical_function, physical_of)(cpu, ram & ~cython.cast(uint64_t, 0xFFF))
        mark_page(cs, page, code)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_tlb_protect_code_x86_64(uc: cython.p_void, ram: uint64_t) -> cython.void:
    set_page_code(uc, ram, True)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_tlb_unprotect_code_x86_64(uc: cython.p_void, ram: uint64_t) -> cython.void:
    set_page_code(uc, ram, False)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_tlb_reset_dirty_by_vaddr_x86_64(cs: cython.p_void, start: uint64_t, length: uint64_t) -> cython.void:
    """Nothing: tlb_protect_code has done it, by physical address."""


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_tlb_set_page_with_attrs_x86_64(
    cs: cython.p_void,
    address: uint64_t,
    physical: uint64_t,
    attributes: uint32_t,
    protection: cython.int,
    mmu: cython.int,
    size: uint64_t,
) -> cython.void:
    """Fill a TLB entry; a page of RAM without code gets a fast one at once."""
    real_set_page(cs, address, physical, attributes, protection, mmu, size)
    cpu: cython.p_void = cpu_of(cython.cast(u8p, cs) + CPU_ENV)
    if cpu == cython.NULL or cython.cast(has_code_function, has_code)(cpu, physical):
        return
    table = cython.cast(cython.pointer(TlbTable), cython.cast(u8p, cs) + CPU_TLB_TABLES) + mmu
    entry = cython.address(table.entries[(address >> 12) & (table.mask >> TLB_ENTRY_BITS)])
    if entry.write != cython.cast(uint64_t, -1):
        entry.write &= ~cython.cast(uint64_t, TLB_NOT_DIRTY)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_x86_ldl_phys_x86_64(cs: cython.p_void, address: uint64_t) -> uint32_t:
    """Page-table walks read RAM directly: Unicorn would look up the region for every entry."""
    cpu: cython.p_void = cpu_of(cython.cast(u8p, cs) + CPU_ENV)
    if cpu != cython.NULL:
        host: cython.pointer(uint8_t) = cython.cast(ram_function, ram_at)(cpu, address, 4)
        if host != cython.NULL:
            return cython.cast(cython.pointer(uint32_t), host)[0]
    return real_load32(cs, address)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def __wrap_x86_ldq_phys_x86_64(cs: cython.p_void, address: uint64_t) -> uint64_t:
    cpu: cython.p_void = cpu_of(cython.cast(u8p, cs) + CPU_ENV)
    if cpu != cython.NULL:
        host: cython.pointer(uint8_t) = cython.cast(ram_function, ram_at)(cpu, address, 8)
        if host != cython.NULL:
            return cython.cast(cython.pointer(uint64_t), host)[0]
    return real_load64(cs, address)
