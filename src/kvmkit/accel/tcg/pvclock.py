"""kvm-clock for guests of the software CPU: the guest reads time from its TSC and one page, without a calibration.

Source: Documentation/virt/kvm/x86/msr.rst and cpuid.rst of Linux (MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_WALL_CLOCK_NEW).
"""

import cython
from cython.cimports.kvmkit.accel.tcg.threads import clock_gettime
from cython.cimports.kvmkit.memory.ram import GuestMemory
from cython.cimports.libc.stdint import int8_t, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.time import timespec


@cython.cclass
class PvClock:
    """A guest's paravirtual clock. Guest time is CLOCK_MONOTONIC plus an offset, in nanoseconds.

    That is what starts it. From then on it is the TSC's: each page written later continues the first one, since a
    new reading of the host's clock could take the guest back by what the two have drifted apart.
    """

    def __cinit__(self, memory: GuestMemory, tsc: uint64_t, then: int64_t, now: int64_t):
        """The TSC was `tsc` at `then`, which is long enough ago to tell its rate from."""
        self.memory = memory
        self.start_tsc = tsc
        self.start_ns = then
        self.offset_ns = -now
        self.tsc_khz = 0
        self.running = False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def measure(self, tsc: uint64_t, now: int64_t) -> cython.void:
        """Take the TSC's rate; once known it stays."""
        if self.tsc_khz == 0 and now > self.start_ns:
            elapsed: int64_t = now - self.start_ns
            rate: cython.double = cython.cast(cython.double, tsc - self.start_tsc) * 1e6 / elapsed
            self.tsc_khz = cython.cast(uint64_t, rate + 0.5)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_msr(self, msr: uint32_t, value: cython.pointer(uint64_t)) -> cython.bint:
        if msr == 0x4B564D01:
            value[0] = self.system_msr
        elif msr == 0x4B564D00:
            value[0] = self.wall_msr
        else:
            return False
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def write_msr(self, msr: uint32_t, value: uint64_t, tsc: uint64_t, now: int64_t) -> cython.bint:
        """False: not a clock MSR, or an address that is no RAM; the guest gets #GP."""
        if msr == 0x4B564D01:
            self.system_msr = value
            if not value & 1:
                return True
            if not self.running:
                self.start(tsc, now)
            return self.publish()
        if msr == 0x4B564D00:
            self.wall_msr = value
            return self.publish_wall(now if not self.running else self.reading(tsc) - self.offset_ns)
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def move(self, difference: uint64_t) -> cython.void:
        """The TSC was set forward by `difference`; the guest's clock does not notice."""
        self.start_tsc += difference
        self.base_tsc += difference
        if self.running and self.system_msr & 1:
            self.publish()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def start(self, tsc: uint64_t, now: int64_t) -> cython.void:
        """Let guest time run from this moment: ns = base_ns + ((tsc - base_tsc << shift) * multiplier >> 32)."""
        rate: uint64_t = self.tsc_khz if self.tsc_khz else 1
        shift: cython.int = 0
        million: uint64_t = 1000000
        while rate > 2 * million:
            rate >>= 1
            shift -= 1
        while rate <= million:
            rate <<= 1
            shift += 1
        exact: cython.double = self.tsc_khz if self.tsc_khz else 1
        exact = exact / (1 << -shift) if shift < 0 else exact * (1 << shift)
        self.multiplier = cython.cast(uint32_t, 4294967296.0 * 1e6 / exact)  # in [2^31, 2^32)
        self.shift = cython.cast(int8_t, shift)
        self.base_tsc = tsc
        self.base_ns = cython.cast(uint64_t, now + self.offset_ns)
        self.running = True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def reading(self, tsc: uint64_t) -> uint64_t:
        """What the guest's clock shows when its TSC is `tsc`."""
        ticks: uint64_t = tsc - self.base_tsc
        ticks = ticks >> -self.shift if self.shift < 0 else ticks << self.shift
        low: uint64_t = cython.cast(uint32_t, ticks)
        return self.base_ns + (ticks >> 32) * self.multiplier + (low * self.multiplier >> 32)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def publish(self) -> cython.bint:
        """Write struct pvclock_vcpu_time_info (32 bytes) where the guest asked for it. False: that is no RAM."""
        page: cython.pointer(uint8_t) = self.memory.pointer(self.system_msr & ~cython.cast(uint64_t, 1), 32)
        if page == cython.NULL:
            return False
        version: uint32_t = 2
        stable: uint8_t = 1  # PVCLOCK_TSC_STABLE_BIT: one vCPU, one TSC
        memcpy(page, cython.address(version), 4)
        memcpy(page + 8, cython.address(self.base_tsc), 8)
        memcpy(page + 16, cython.address(self.base_ns), 8)
        memcpy(page + 24, cython.address(self.multiplier), 4)
        memcpy(page + 28, cython.address(self.shift), 1)
        memcpy(page + 29, cython.address(stable), 1)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def publish_wall(self, now: int64_t) -> cython.bint:
        """Write struct pvclock_wall_clock (12 bytes): the real time at which the guest's clock was 0."""
        page: cython.pointer(uint8_t) = self.memory.pointer(self.wall_msr, 12)
        if page == cython.NULL:
            return False
        real: timespec
        clock_gettime(0, cython.address(real))
        start: int64_t = real.tv_sec * cython.cast(int64_t, 1000000000) + real.tv_nsec - (now + self.offset_ns)
        version: uint32_t = 2
        seconds: uint32_t = cython.cast(uint32_t, start // 1000000000)
        nanoseconds: uint32_t = cython.cast(uint32_t, start % 1000000000)
        memcpy(page, cython.address(version), 4)
        memcpy(page + 4, cython.address(seconds), 4)
        memcpy(page + 8, cython.address(nanoseconds), 4)
        return True

    @cython.cfunc
    def get(self, tsc: uint64_t, now: int64_t):
        """struct kvm_clock_data, 48 bytes."""
        value: uint64_t = self.reading(tsc) if self.running else now + self.offset_ns
        return (value & 0xFFFFFFFFFFFFFFFF).to_bytes(8, "little") + bytes(40)

    @cython.cfunc
    def set(self, data: bytes, tsc: uint64_t, now: int64_t):
        """Set the guest's clock from struct kvm_clock_data."""
        self.offset_ns = (int.from_bytes(data[:8], "little") & 0x3FFFFFFFFFFFFFFF) - now
        if self.running:
            self.start(tsc, now)
            if self.system_msr & 1:
                self.publish()
