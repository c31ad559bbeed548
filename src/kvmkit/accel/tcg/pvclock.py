"""kvm-clock for guests of the software CPU: the guest reads time from its TSC and one page, without a calibration.

Source: Documentation/virt/kvm/x86/msr.rst and cpuid.rst of Linux (MSR_KVM_SYSTEM_TIME_NEW, MSR_KVM_WALL_CLOCK_NEW).
"""

import cython
from cython.cimports.kvmkit.accel.tcg.threads import clock_gettime
from cython.cimports.kvmkit.memory.ram import GuestMemory
from cython.cimports.libc.stdint import int8_t, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.time import timespec

SETTLED = 2_000_000  # ns between two readings of the TSC that give its rate to about 20 ppm


@cython.cclass
class PvClock:
    """A guest's paravirtual clock. Guest time is CLOCK_MONOTONIC plus an offset, in nanoseconds."""

    def __cinit__(self, memory: GuestMemory, tsc: uint64_t, now: int64_t):
        self.memory = memory
        self.start_tsc = tsc
        self.start_ns = now
        self.offset_ns = -now
        self.tsc_khz = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def measure(self, tsc: uint64_t, now: int64_t) -> cython.void:
        """Take the TSC's rate from the time since the VM was made; once known it stays."""
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
            return not value & 1 or self.publish(tsc, now)
        if msr == 0x4B564D00:
            self.wall_msr = value
            return self.publish_wall(now)
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def publish(self, tsc: uint64_t, now: int64_t) -> cython.bint:
        """Write struct pvclock_vcpu_time_info (32 bytes) where the guest asked for it."""
        page: cython.pointer(uint8_t) = self.memory.pointer(self.system_msr & ~cython.cast(uint64_t, 1), 32)
        if page == cython.NULL:
            return False
        # ns = ((tsc << shift) * multiplier) >> 32, with the multiplier in [2^31, 2^32)
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
        multiplier: uint32_t = cython.cast(uint32_t, 4294967296.0 * 1e6 / exact)
        version: uint32_t = 2
        moment: uint64_t = cython.cast(uint64_t, now + self.offset_ns)
        small: int8_t = cython.cast(int8_t, shift)
        stable: uint8_t = 1  # PVCLOCK_TSC_STABLE_BIT: one vCPU, one TSC
        memcpy(page, cython.address(version), 4)
        memcpy(page + 8, cython.address(tsc), 8)
        memcpy(page + 16, cython.address(moment), 8)
        memcpy(page + 24, cython.address(multiplier), 4)
        memcpy(page + 28, cython.address(small), 1)
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

    def get(self, now: int64_t) -> bytes:
        """struct kvm_clock_data, 48 bytes."""
        return (now + self.offset_ns).to_bytes(8, "little") + bytes(40)

    def set(self, data: bytes, now: int64_t) -> None:
        """Set the guest's clock from struct kvm_clock_data."""
        self.offset_ns = (int.from_bytes(data[:8], "little") & 0x3FFFFFFFFFFFFFFF) - now
