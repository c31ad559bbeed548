"""One vCPU of KVM: the run loop, and its state. Source: Documentation/virt/kvm/api.rst, "vcpu ioctls", "kvm_run"."""

import os
import struct

import cython
from cython.cimports.cpython.exc import PyErr_CheckSignals
from cython.cimports.kvmkit.accel.kvm import uapi
from cython.cimports.kvmkit.accel.kvm.transfer import fetch, refused, store
from cython.cimports.kvmkit.accel.kvm.vm import KvmVm
from cython.cimports.libc.errno import EAGAIN, EINTR, errno
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.mman import MAP_FAILED, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap

from kvmkit.accel import Exit, ExitReason
from kvmkit.accel.cpuid import for_vcpu
from kvmkit.accel.state import VCPU_STATE
from kvmkit.errors import KvmkitError

EXIT_NAMES: dict = {
    uapi.KVM_EXIT_IO: "port",
    uapi.KVM_EXIT_MMIO: "memory",
    uapi.KVM_EXIT_HLT: "halt",
    uapi.KVM_EXIT_INTR: "interrupt",
    uapi.KVM_EXIT_SHUTDOWN: "shutdown",
    uapi.KVM_EXIT_SYSTEM_EVENT: "system event",
    uapi.KVM_EXIT_FAIL_ENTRY: "failed entry",
    uapi.KVM_EXIT_INTERNAL_ERROR: "internal error",
}

_SUBERRORS: dict = {
    1: "it can't emulate an instruction",
    2: "two exceptions at once",
    3: "an exit while an event was being delivered",
    4: "an exit it does not know",
}
_SYSTEM_EVENTS: dict = {
    uapi.KVM_SYSTEM_EVENT_SHUTDOWN: "power off",
    uapi.KVM_SYSTEM_EVENT_RESET: "reset",
    uapi.KVM_SYSTEM_EVENT_CRASH: "crash",
}

_GET: dict = {
    "regs": uapi.KVM_GET_REGS,
    "sregs": uapi.KVM_GET_SREGS,
    "xcrs": uapi.KVM_GET_XCRS,
    "events": uapi.KVM_GET_VCPU_EVENTS,
    "lapic": uapi.KVM_GET_LAPIC,
    "debugregs": uapi.KVM_GET_DEBUGREGS,
    "mp_state": uapi.KVM_GET_MP_STATE,
}
_SET: dict = {
    "regs": uapi.KVM_SET_REGS,
    "sregs": uapi.KVM_SET_SREGS,
    "xcrs": uapi.KVM_SET_XCRS,
    "events": uapi.KVM_SET_VCPU_EVENTS,
    "lapic": uapi.KVM_SET_LAPIC,
    "debugregs": uapi.KVM_SET_DEBUGREGS,
    "mp_state": uapi.KVM_SET_MP_STATE,
}

TSC_DEADLINE: int = 0x6E0
PLAIN_XSAVE: int = 4096
_MSR = struct.Struct("=IIQ")

_signal_ready: cython.bint = False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _interrupted(number: cython.int) -> cython.void:
    """The kick signal's handler: that KVM_RUN came back with EINTR is all it is for."""


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _kick_signal() -> cython.int:
    return uapi.SIGRTMIN + 6  # glibc keeps those below SIGRTMIN; the first few are what programs pick by hand


@cython.cfunc
@cython.exceptval(-1, check=False)
def _prepare_signal() -> cython.int:
    global _signal_ready
    if _signal_ready:
        return 0
    action: uapi.sigaction_t
    action.sa_handler = _interrupted
    action.sa_flags = 0  # above all not SA_RESTART, which would have KVM_RUN go on
    uapi.sigemptyset(cython.address(action.sa_mask))
    if uapi.install_action(_kick_signal(), cython.address(action), cython.NULL) < 0:
        raise KvmkitError(f"can't install the handler of signal {_kick_signal()}: {os.strerror(errno)}")
    _signal_ready = True
    return 0


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _load(p: cython.pointer(uint8_t), size: cython.uint) -> uint64_t:
    if size == 1:
        return p[0]
    if size == 2:
        return cython.cast(cython.pointer(uint16_t), p)[0]
    if size == 4:
        return cython.cast(cython.pointer(uint32_t), p)[0]
    return cython.cast(cython.pointer(uint64_t), p)[0]


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def _store(p: cython.pointer(uint8_t), size: cython.uint, value: uint64_t) -> cython.void:
    if size == 1:
        p[0] = cython.cast(uint8_t, value)
    elif size == 2:
        cython.cast(cython.pointer(uint16_t), p)[0] = cython.cast(uint16_t, value)
    elif size == 4:
        cython.cast(cython.pointer(uint32_t), p)[0] = cython.cast(uint32_t, value)
    else:
        cython.cast(cython.pointer(uint64_t), p)[0] = value


@cython.cclass
class KvmVcpu:
    """vCPU `index` of `vm`, on file descriptor `fd`, which it closes."""

    def __cinit__(self, vm: KvmVm, index: cython.int, fd: cython.int, page_size: cython.size_t):
        self.fd = fd
        self.index = index
        self.vm = vm
        self.page = cython.NULL
        self.page_size = page_size
        self.ports = vm.ports
        self.mmio = vm.mmio
        self.running = False
        self.deadline = 0
        i: cython.int
        for i in range(64):
            self.counts[i] = 0
        _prepare_signal()
        page = mmap(cython.NULL, page_size, PROT_READ | PROT_WRITE, MAP_SHARED, fd, 0)
        if page == MAP_FAILED:
            refused(f"to share vCPU {index}'s page")
        self.page = cython.cast(cython.pointer(uapi.kvm_run), page)
        self._set_cpuid(for_vcpu(vm.cpuid, index, vm.cpus))

    def __dealloc__(self):
        if self.page != cython.NULL:
            munmap(self.page, self.page_size)
        if self.fd >= 0:
            os.close(self.fd)

    def close(self) -> None:
        """Give back the file descriptor and the shared page. Raises KvmkitError while it runs."""
        if self.running:
            raise KvmkitError(f"vCPU {self.index} is running: kick it first")
        if self.page != cython.NULL:
            munmap(self.page, self.page_size)
            self.page = cython.NULL
        if self.fd >= 0:
            os.close(self.fd)
            self.fd = -1

    def _set_cpuid(self, table: dict) -> None:
        count: cython.int = len(table)
        area: cython.pointer(uapi.kvm_cpuid2) = cython.cast(
            cython.pointer(uapi.kvm_cpuid2),
            calloc(1, cython.sizeof(uapi.kvm_cpuid2) + count * cython.sizeof(uapi.kvm_cpuid_entry2)),
        )
        if area == cython.NULL:
            raise MemoryError
        i: cython.int = 0
        try:
            area.nent = count
            for (leaf, subleaf), (eax, ebx, ecx, edx) in table.items():
                entry = cython.address(area.entries[i])
                entry.function = leaf
                if subleaf is not None:
                    entry.index = subleaf
                    entry.flags = uapi.KVM_CPUID_FLAG_SIGNIFCANT_INDEX
                entry.eax, entry.ebx, entry.ecx, entry.edx = eax, ebx, ecx, edx
                i += 1
            if uapi.ioctl(self.fd, uapi.KVM_SET_CPUID2, area) < 0:
                refused(f"vCPU {self.index}'s CPUID")
        finally:
            free(area)

    # Running

    def run(self):
        """Run the guest until something only the machine can decide; see `kvmkit.accel.VirtualCpu`."""
        if self.page == cython.NULL or self.running:
            raise KvmkitError(f"vCPU {self.index} is {'running' if self.running else 'closed'} already")
        # Threads inherit the mask of the one that started them, which may have blocked every signal.
        wanted: uapi.sigset_t
        uapi.sigemptyset(cython.address(wanted))
        uapi.sigaddset(cython.address(wanted), _kick_signal())
        uapi.pthread_sigmask(uapi.SIG_UNBLOCK, cython.address(wanted), cython.NULL)
        self.thread = uapi.pthread_self()
        self.running = True
        try:
            return self._loop()
        finally:
            self.running = False

    def kick(self) -> None:
        """Make `run` return KICKED, this time or (when it is not running) the next.

        `immediate_exit` stays set until `_loop` takes it, so a kick between two KVM_RUN is not lost; the signal gets
        a vCPU out that is in KVM_RUN already. The thread is in `run` whenever `running` holds: both need the GIL.
        """
        if self.page == cython.NULL:
            return
        self.page.immediate_exit = 1
        if self.running:
            uapi.pthread_kill(self.thread, _kick_signal())

    @cython.cfunc
    def _loop(self) -> object:
        fd: cython.int = self.fd
        result: cython.int
        error: cython.int
        reason: uint32_t
        page = self.page
        while True:
            with cython.nogil:
                result = uapi.ioctl(fd, uapi.KVM_RUN, cython.cast(cython.ulong, 0))
                error = errno
            if result < 0:
                if error == EINTR:
                    self.counts[uapi.KVM_EXIT_INTR] += 1
                    if page.immediate_exit:
                        # KVM has finished the access of the exit before, so state is whole here.
                        page.immediate_exit = 0
                        return Exit(ExitReason.KICKED)
                    PyErr_CheckSignals()
                elif error != EAGAIN:  # EAGAIN: a vCPU that waits for its SIPI was woken
                    return Exit(ExitReason.INTERNAL_ERROR, error, f"KVM_RUN: {os.strerror(error)}")
                continue
            reason = page.exit_reason
            self.counts[reason & 63] += 1
            if reason == uapi.KVM_EXIT_IO:
                self._port()
            elif reason == uapi.KVM_EXIT_MMIO:
                self._memory()
            elif reason != uapi.KVM_EXIT_INTR and reason != uapi.KVM_EXIT_IRQ_WINDOW_OPEN:
                return self._exit(reason)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _port(self) -> cython.int:
        """KVM_EXIT_IO: `count` times `size` bytes to or from one port (more than one for INS and OUTS)."""
        page = self.page
        port: uint64_t = page.io.port
        size: cython.uint = page.io.size
        count: uint32_t = page.io.count
        p: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), page) + page.io.data_offset
        if page.io.direction == uapi.KVM_EXIT_IO_OUT:
            while count:
                self.ports.write(port, size, _load(p, size))
                p += size
                count -= 1
        else:
            while count:
                _store(p, size, self.ports.read(port, size))
                p += size
                count -= 1
        return 0

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _memory(self) -> cython.int:
        """KVM_EXIT_MMIO: up to 8 bytes. An access that crosses a page comes in two parts, of any length."""
        page = self.page
        address: uint64_t = page.mmio.phys_addr
        size: cython.uint = page.mmio.len
        p: cython.pointer(uint8_t) = cython.address(page.mmio.data[0])
        if size & (size - 1) == 0:
            if page.mmio.is_write:
                self.mmio.write(address, size, _load(p, size))
            else:
                _store(p, size, self.mmio.read(address, size))
            return 0
        while size:
            if page.mmio.is_write:
                self.mmio.write(address, 1, p[0])
            else:
                p[0] = cython.cast(uint8_t, self.mmio.read(address, 1))
            address += 1
            p += 1
            size -= 1
        return 0

    @cython.cfunc
    def _exit(self, reason: uint32_t) -> object:
        page = self.page
        if reason == uapi.KVM_EXIT_HLT:
            return Exit(ExitReason.HALTED)
        if reason == uapi.KVM_EXIT_SHUTDOWN:
            return Exit(ExitReason.SHUTDOWN, 0, "triple fault")
        if reason == uapi.KVM_EXIT_SYSTEM_EVENT:
            event = page.system_event.type
            return Exit(ExitReason.SYSTEM_EVENT, event, _SYSTEM_EVENTS.get(event, f"event {event}"))
        if reason == uapi.KVM_EXIT_FAIL_ENTRY:
            why = page.fail_entry.hardware_entry_failure_reason
            return Exit(ExitReason.FAILED_ENTRY, why & 0xFFFFFFFF, f"the processor refused the guest's state: {why:#x}")
        if reason == uapi.KVM_EXIT_INTERNAL_ERROR:
            error = page.internal.suberror
            detail = f"KVM's internal error {error}: {_SUBERRORS.get(error, 'unknown')}"
            if (
                error == uapi.KVM_INTERNAL_ERROR_EMULATION
                and page.emulation_failure.ndata >= 3
                and page.emulation_failure.flags & uapi.KVM_INTERNAL_ERROR_EMULATION_FLAG_INSTRUCTION_BYTES
            ):
                size: cython.int = min(page.emulation_failure.insn_size, 15)
                bytes_there: bytes = page.emulation_failure.insn_bytes[:size]
                detail += f" ({bytes_there.hex(' ')})"
            return Exit(ExitReason.INTERNAL_ERROR, error, detail)
        if reason == uapi.KVM_EXIT_UNKNOWN:
            hardware = page.hw.hardware_exit_reason
            return Exit(ExitReason.INTERNAL_ERROR, 0, f"the processor left the guest for reason {hardware:#x}")
        return Exit(ExitReason.INTERNAL_ERROR, reason, f"KVM_RUN came back with exit reason {reason}")

    def exits(self) -> dict:
        """How often the guest left, by reason; those that never happened are left out."""
        i: cython.int
        return {EXIT_NAMES.get(i, f"reason {i}"): self.counts[i] for i in range(64) if self.counts[i]}

    # State

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _idle(self) -> cython.int:
        """KVM holds a vCPU's lock all through KVM_RUN: without this check, asking for state would hang."""
        if self.page == cython.NULL:
            raise KvmkitError(f"vCPU {self.index} is closed")
        if self.running and self.thread != uapi.pthread_self():
            raise KvmkitError(f"vCPU {self.index} is running: kick it first")
        return 0

    def get(self, name: str) -> bytes:
        """A part of the state: a key of `kvmkit.accel.state.VCPU_STATE`."""
        size = VCPU_STATE[name]
        self._idle()
        if name == "msrs":
            return self._get_msrs()
        if name == "xsave":
            size = self.vm.xsave_size
            request = uapi.KVM_GET_XSAVE2 if size > PLAIN_XSAVE else uapi.KVM_GET_XSAVE
            return fetch(self.fd, request, bytes(size), name)
        return fetch(self.fd, _GET[name], bytes(size), name)

    def set(self, name: str, data: bytes) -> None:
        """The inverse of `get`. Raises KvmkitError when KVM refuses it."""
        size = VCPU_STATE[name]
        self._idle()
        if name == "msrs":
            self._set_msrs(bytes(data))
            return
        if name == "xsave":
            size = self.vm.xsave_size
            data = data.ljust(size, b"\0")  # a host with fewer features saved less
        if len(data) != size:
            raise KvmkitError(f"state {name} has {size} bytes, not {len(data)}")
        store(self.fd, uapi.KVM_SET_XSAVE if name == "xsave" else _SET[name], bytes(data), f"state {name}")
        if name == "lapic" and self.deadline:
            # Only now does the timer take a deadline: before, it was in another mode, and KVM dropped the write.
            deadline, self.deadline = self.deadline, 0
            self._set_msrs(_MSR.pack(TSC_DEADLINE, 0, deadline))

    @cython.cfunc
    def _get_msrs(self) -> bytes:
        indices: list = list(self.vm.msr_indices)
        while True:
            entries = b"".join([_MSR.pack(index, 0, 0) for index in indices])
            data = struct.pack("=II", len(indices), 0) + entries
            done: cython.int = uapi.ioctl(self.fd, uapi.KVM_GET_MSRS, cython.cast(cython.p_char, data))
            if done < 0:
                refused("to give msrs")
            if done == len(indices):
                break
            del indices[done]  # KVM stops at the first that this vCPU does not have
        if not self.vm.msrs_checked:
            self.vm.keep_msrs(indices)
        return data[8:]

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def _set_msrs(self, data: bytes) -> cython.int:
        if len(data) % _MSR.size:
            raise KvmkitError(f"state msrs is {len(data)} bytes, not whole entries of {_MSR.size}")
        entries: list = list(_MSR.iter_unpack(data))
        for index, _, value in entries:
            if index == TSC_DEADLINE:
                self.deadline = value
        while entries:
            batch = struct.pack("=II", len(entries), 0) + b"".join([_MSR.pack(i, 0, value) for i, _, value in entries])
            done: cython.int = store(self.fd, uapi.KVM_SET_MSRS, batch, "state msrs")
            if done < len(entries):
                # What can only be read is no obstacle as long as it reads the same.
                index, _, value = entries[done]
                present = fetch(self.fd, uapi.KVM_GET_MSRS, struct.pack("=IIIIQ", 1, 0, index, 0, 0), "msrs")
                if struct.unpack_from("=Q", present, 16)[0] != value:
                    raise KvmkitError(f"KVM refuses {value:#x} in MSR {index:#x}")
                done += 1
            entries = entries[done:]
        return 0

    def translate(self, address: int) -> int | None:
        """KVM_TRANSLATE: the guest physical address behind a linear one; None: not mapped."""
        self._idle()
        asked = struct.pack("=Q", address & 0xFFFFFFFFFFFFFFFF).ljust(24, b"\0")
        found = fetch(self.fd, uapi.KVM_TRANSLATE, asked, f"a translation of {address:#x}")
        physical, valid = struct.unpack_from("=8xQB", found)
        return physical if valid else None
