"""The local APIC's timer, computed from the time: nothing ticks.

It counts at 1 GHz before the divider, as KVM's does, so a count is in ns times the divider.
Source: Intel SDM volume 3, "APIC Timer".
"""

import cython
from cython.cimports.kvmkit.accel.tcg.clock import later, scale
from cython.cimports.libc.stdint import INT64_MAX, int64_t, uint32_t, uint64_t

# A guest that asks for a period of a few ns would keep the host's processor in timer interrupts alone.
MIN_PERIOD = cython.declare(int64_t, 50000)


@cython.final
@cython.cclass
class ApicTimer:
    """Mode, initial count and the next expiry. Whether an expiry interrupts is the LVT's affair, not the timer's."""

    def __cinit__(self):
        self.tsc_khz = 0
        self.tsc = 0
        self.tsc_time = 0
        self.reset()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def reset(self) -> cython.void:
        self.mode = ONE_SHOT
        self.divide = 2
        self.initial = 0
        self.expiry = INT64_MAX
        self.period = 0
        self.tsc_deadline = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_mode(self, mode: cython.int, now: int64_t) -> cython.void:
        """Between one-shot and periodic the count goes on; to or from the other modes everything stops.

        Call `due` first: an expiry before `now` belongs to the old mode.
        """
        if mode == self.mode:
            return
        counted: cython.bint = self.mode <= PERIODIC
        self.mode = mode
        if not counted or mode > PERIODIC:
            self.initial = 0
            self.expiry = INT64_MAX
            self.tsc_deadline = 0
        elif mode == PERIODIC:
            if self.expiry == INT64_MAX:
                self.initial = 0  # a stopped periodic timer: saved state must not look like a running one
            self.period = max(cython.cast(int64_t, self.initial) * self.divide, MIN_PERIOD)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_divide(self, divide: uint32_t, now: int64_t) -> cython.void:
        left: uint32_t = self.remaining(now)
        self.divide = divide
        if left:
            self.start(left, now)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def arm(self, count: uint32_t, now: int64_t) -> cython.void:
        """A write to the initial-count register; 0 stops the timer. Without effect in TSC-deadline mode."""
        if self.mode > PERIODIC:
            return
        self.initial = count
        self.start(count, now)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def start(self, count: uint32_t, now: int64_t) -> cython.void:
        """Count down from `count`, which is not above the initial count."""
        self.expiry = INT64_MAX
        if count == 0:
            return
        wait: int64_t = cython.cast(int64_t, count) * self.divide
        if self.mode == PERIODIC:
            self.period = max(cython.cast(int64_t, self.initial) * self.divide, MIN_PERIOD)
            if count == self.initial:
                wait = self.period
        self.expiry = later(now, wait)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_deadline(self, tsc: uint64_t) -> cython.void:
        """Expire when the guest's TSC reaches `tsc`; 0 disarms. Kept, but without effect, in the other modes."""
        self.tsc_deadline = tsc
        if self.mode != TSC_DEADLINE:
            return
        if tsc == 0 or self.tsc_khz == 0:
            self.expiry = INT64_MAX
        elif tsc <= self.tsc:
            self.expiry = self.tsc_time
        else:
            self.expiry = later(self.tsc_time, scale(tsc - self.tsc, self.tsc_khz, 1000000))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_tsc(self, tsc: uint64_t, now: int64_t) -> cython.void:
        """The guest's TSC is `tsc` at `now`."""
        self.tsc = tsc
        self.tsc_time = now
        if self.mode == TSC_DEADLINE:
            self.set_deadline(self.tsc_deadline)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def remaining(self, now: int64_t) -> uint32_t:
        """The current-count register: rounded up, so that it is 0 only when the timer stands."""
        if self.mode > PERIODIC or self.expiry == INT64_MAX:
            return 0
        left: int64_t = self.expiry - now
        if left <= 0:
            if self.mode == ONE_SHOT:
                return 0
            left = self.period - (-left) % self.period
        count: int64_t = (left + self.divide - 1) // self.divide
        return cython.cast(uint32_t, min(count, cython.cast(int64_t, self.initial)))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def due(self, now: int64_t) -> cython.bint:
        """Whether the timer expired by `now`. Periods that were missed count once: no flood after a pause."""
        if now < self.expiry or self.expiry == INT64_MAX:
            return False
        if self.mode == PERIODIC:
            self.expiry = later(self.expiry, (now - self.expiry) // self.period * self.period + self.period)
        else:
            self.expiry = INT64_MAX
            self.tsc_deadline = 0
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def restore(
        self, mode: cython.int, divide: uint32_t, initial: uint32_t, current: uint32_t, now: int64_t
    ) -> cython.void:
        """Go on from saved registers. A deadline that was set before this stays: it is an MSR of its own."""
        self.mode = mode
        self.divide = divide
        self.initial = initial if mode <= PERIODIC else 0
        self.period = 0
        self.expiry = INT64_MAX
        if mode <= PERIODIC:
            self.tsc_deadline = 0
            # KVM rounds the count down, so 0 may be a periodic timer just about to expire: it must not stop for ever.
            self.start(initial if mode == PERIODIC and current == 0 else min(current, initial), now)
        elif mode == TSC_DEADLINE:
            self.set_deadline(self.tsc_deadline)
