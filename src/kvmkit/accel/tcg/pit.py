"""The 8254 timer: three channels, computed from the time instead of ticked, and the PC's port 0x61.

State is KVM's struct kvm_pit_state2 and is used as it is, with two values of ours that KVM's code reads as harmless:
`count` 0 says that a control word has been written and no count yet; `count_load_time` NOT_RUNNING says that
channel 0's one-shot count has run out (or that a count waits for its trigger), so that restoring does not repeat it.
Simplifications: a count is in force at once, where the chip waits for its next clock (modes 2 and 3: its next period).
Source: Intel 8254 data sheet.
"""

from time import monotonic_ns

import cython
from cython.cimports.kvmkit.accel.tcg.clock import later, scale, ticks_in
from cython.cimports.kvmkit.accel.tcg.formats import (
    KVM_PIT_FLAGS_SPEAKER_DATA_ON,
    kvm_pit_channel_state,
    kvm_pit_state2,
)
from cython.cimports.libc.stdint import INT64_MAX, int64_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcpy, memset

from kvmkit.errors import BadInput

HZ = cython.declare(uint32_t, 1193182)
NS = cython.declare(uint32_t, 1000000000)
NOT_RUNNING = cython.declare(int64_t, -1)
# A guest that asks for a tick each microsecond would keep the host's processor in timer interrupts alone.
MIN_PERIOD = cython.declare(int64_t, 50000)
# How bytes of a count are read and written: rw_mode, read_state and write_state.
LOW = cython.declare(cython.int, 1)
HIGH = cython.declare(cython.int, 2)
WORD = cython.declare(cython.int, 3)
WORD_HIGH = cython.declare(cython.int, 4)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def from_bcd(value: uint32_t) -> uint32_t:
    return (value >> 12 & 15) * 1000 + (value >> 8 & 15) * 100 + (value >> 4 & 15) * 10 + (value & 15)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def to_bcd(value: uint32_t) -> uint32_t:
    return (value // 1000 % 10 << 12) | (value // 100 % 10 << 8) | (value // 10 % 10 << 4) | value % 10


@cython.final
@cython.cclass
class Pit:
    """Ports 0x40 to 0x43 and 0x61. Channel 0's output is GSI 0; `poll` says when it rises. `now`: monotonic ns."""

    def __cinit__(self):
        self.reset()

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def reset(self) -> cython.void:
        """No channel counts; the gate of channel 2 is low."""
        channel: cython.int
        memset(cython.address(self.pit), 0, cython.sizeof(kvm_pit_state2))
        for channel in range(3):
            c = cython.address(self.pit.channels[channel])
            c.rw_mode = WORD
            c.read_state = WORD
            c.write_state = WORD
            c.gate = channel != 2
            c.count_load_time = NOT_RUNNING
            self.stopped[channel] = 0
        self.next = INT64_MAX

    # The count and the output, from the time

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def elapsed(self, channel: cython.int, now: int64_t) -> uint64_t:
        """Clocks counted since the load or trigger. A low gate holds the count, except in modes 1 and 5."""
        c = cython.address(self.pit.channels[channel])
        if c.count_load_time == NOT_RUNNING:
            return c.count
        if not c.gate and c.mode != 1 and c.mode != 5:
            now = self.stopped[channel]
        return ticks_in(now - c.count_load_time, HZ)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def counter(self, channel: cython.int, now: int64_t) -> uint32_t:
        """The counting element, as it is read: 16 bits, or four decimal digits."""
        c = cython.address(self.pit.channels[channel])
        if c.count == 0:
            return 0
        wrap: uint64_t = 10000 if c.bcd else 0x10000
        count: uint64_t = c.count
        passed: uint64_t = self.elapsed(channel, now)
        half: uint64_t
        value: uint64_t
        if c.mode == 2:
            value = count - passed % count
        elif c.mode == 3:
            # By twos, and an odd count's high half is a clock longer.
            half = (count + 1) >> 1
            passed %= count
            value = (count & ~cython.cast(uint64_t, 1)) - 2 * (passed if passed < half else passed - half)
        else:
            value = count + wrap * 2 - passed % wrap
        value %= wrap
        return to_bcd(cython.cast(uint32_t, value)) if c.bcd else cython.cast(uint32_t, value)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def output(self, channel: cython.int, now: int64_t) -> cython.bint:
        """The level of OUT of channel 0, 1 or 2."""
        if channel < 0 or channel > 2:
            return False
        c = cython.address(self.pit.channels[channel])
        if c.count == 0:
            return c.mode != 0
        passed: uint64_t = self.elapsed(channel, now)
        if c.mode == 0 or c.mode == 1:
            return passed >= c.count
        if c.count_load_time == NOT_RUNNING or (not c.gate and c.mode != 5 and c.mode != 4):
            return True
        if c.mode == 2:
            return passed % c.count != c.count - 1
        if c.mode == 3:
            return passed % c.count < (c.count + 1) >> 1
        return passed != c.count

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def schedule(self, now: int64_t) -> cython.void:
        """Find the next time after `now` that OUT of channel 0 rises."""
        c = cython.address(self.pit.channels[0])
        self.next = INT64_MAX
        if c.count == 0 or c.count_load_time == NOT_RUNNING or c.mode == 1 or c.mode == 5:
            return
        clocks: uint64_t = c.count
        if c.mode == 4:
            clocks += 1
        elif c.mode != 0:
            clocks *= ticks_in(now - c.count_load_time, HZ) // clocks + 1
        self.next = later(c.count_load_time, scale(clocks, HZ, NS))

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def deadline(self) -> int64_t:
        """When `poll` has something to do next."""
        return self.next

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def poll(self, now: int64_t) -> cython.bint:
        """Whether OUT of channel 0 rose by `now`. Edges that were missed count once: no flood after a pause."""
        if now < self.next or self.next == INT64_MAX:
            return False
        c = cython.address(self.pit.channels[0])
        before: int64_t = self.next
        if c.mode == 2 or c.mode == 3:
            self.schedule(now)
            if self.next < before + MIN_PERIOD:
                self.next = before + MIN_PERIOD
        else:
            self.next = INT64_MAX
        return True

    # Loading, gates, latches

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def load(self, channel: cython.int, value: uint32_t, now: int64_t) -> cython.void:
        """A whole count has been written."""
        c = cython.address(self.pit.channels[channel])
        if c.bcd:
            value = from_bcd(value)
        if value == 0:
            value = 10000 if c.bcd else 0x10000
        c.count = value
        # Modes 1 and 5 start at the next rising gate.
        c.count_load_time = NOT_RUNNING if c.mode == 1 or c.mode == 5 else now
        self.stopped[channel] = now
        if channel == 0:
            self.schedule(now)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def set_gate(self, channel: cython.int, level: cython.bint, now: int64_t) -> cython.void:
        c = cython.address(self.pit.channels[channel])
        if level == (c.gate != 0):
            return
        c.gate = level
        if not level:
            self.stopped[channel] = now
        elif c.count != 0:
            if c.mode != 0 and c.mode != 4:
                c.count_load_time = now
            elif c.count_load_time != NOT_RUNNING:
                c.count_load_time = later(c.count_load_time, max(now - self.stopped[channel], 0))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def latch_count(self, channel: cython.int, now: int64_t) -> cython.void:
        c = cython.address(self.pit.channels[channel])
        if not c.count_latched:
            c.latched_count = self.counter(channel, now)
            c.count_latched = c.rw_mode

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def latch_status(self, channel: cython.int, now: int64_t) -> cython.void:
        c = cython.address(self.pit.channels[channel])
        if not c.status_latched:
            out: cython.int = self.output(channel, now)
            null: cython.int = c.count == 0
            c.status = (out << 7) | (null << 6) | (c.rw_mode << 4) | (c.mode << 1) | c.bcd
            c.status_latched = 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def control(self, value: uint8_t, now: int64_t) -> cython.void:
        """Port 0x43: a control word, a counter latch or a read-back command."""
        channel: cython.int = value >> 6
        if channel == 3:
            for channel in range(3):
                if value >> (channel + 1) & 1:
                    if not value & 0x20:
                        self.latch_count(channel, now)
                    if not value & 0x10:
                        self.latch_status(channel, now)
            return
        access: cython.int = value >> 4 & 3
        if access == 0:
            self.latch_count(channel, now)
            return
        c = cython.address(self.pit.channels[channel])
        c.rw_mode = access
        c.read_state = access
        c.write_state = access
        c.count_latched = 0
        c.status_latched = 0
        c.mode = value >> 1 & 7
        if c.mode > 5:
            c.mode -= 4
        c.bcd = value & 1
        c.count = 0
        c.count_load_time = NOT_RUNNING
        if channel == 0:
            self.next = INT64_MAX

    # Ports

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def claims(self, port: cython.uint) -> cython.bint:
        return port & ~3 == 0x40 or port == 0x61

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def write(self, port: cython.uint, value: uint8_t, now: int64_t) -> cython.void:
        """A claimed port. Port 0x61: bit 0 is channel 2's gate, bit 1 connects the speaker."""
        if port == 0x61:
            self.set_gate(2, value & 1, now)
            self.pit.flags = KVM_PIT_FLAGS_SPEAKER_DATA_ON if value & 2 else 0
            return
        if port & 3 == 3:
            self.control(value, now)
            return
        channel: cython.int = port & 3
        c = cython.address(self.pit.channels[channel])
        if c.write_state == LOW:
            self.load(channel, value, now)
        elif c.write_state == HIGH:
            self.load(channel, cython.cast(uint32_t, value) << 8, now)
        elif c.write_state == WORD:
            c.write_latch = value
            c.write_state = WORD_HIGH
            if c.mode == 0:
                c.count = 0  # the first byte of a new count stops the old one
                c.count_load_time = NOT_RUNNING
                if channel == 0:
                    self.next = INT64_MAX
        else:
            c.write_state = WORD
            self.load(channel, (cython.cast(uint32_t, value) << 8) | c.write_latch, now)

    @cython.ccall
    @cython.nogil
    @cython.exceptval(check=False)
    def read(self, port: cython.uint, now: int64_t) -> uint8_t:
        """A claimed port. Port 0x61: bit 4 toggles with DRAM refresh (15 us), bit 5 is channel 2's output."""
        if port == 0x61:
            speaker: uint8_t = 2 if self.pit.flags & KVM_PIT_FLAGS_SPEAKER_DATA_ON else 0
            refresh: uint8_t = now // 15085 & 1
            out: uint8_t = self.output(2, now)
            return self.pit.channels[2].gate | speaker | (refresh << 4) | (out << 5)
        if port & 3 == 3:
            return 0xFF
        channel: cython.int = port & 3
        c = cython.address(self.pit.channels[channel])
        if c.status_latched:
            c.status_latched = 0
            return c.status
        if c.count_latched:
            if c.count_latched == WORD:
                c.count_latched = HIGH
                return c.latched_count & 0xFF
            low: cython.bint = c.count_latched == LOW
            c.count_latched = 0
            return c.latched_count & 0xFF if low else c.latched_count >> 8
        value: uint32_t = self.counter(channel, now)
        if c.read_state == LOW:
            return value & 0xFF
        if c.read_state == HIGH:
            return value >> 8
        if c.read_state == WORD:
            c.read_state = WORD_HIGH
            return value & 0xFF
        c.read_state = WORD
        return value >> 8

    # State

    def state(self, now=None) -> bytes:
        """struct kvm_pit_state2, 112 bytes. A held count's load time moves along, so that it needs no other."""
        channel: cython.int
        when: int64_t = monotonic_ns() if now is None else now
        saved: kvm_pit_state2 = self.pit
        for channel in range(3):
            c: cython.pointer(kvm_pit_channel_state) = cython.address(saved.channels[channel])
            if channel == 0 and self.next == INT64_MAX:
                c.count_load_time = NOT_RUNNING
            if not c.gate and c.mode != 1 and c.mode != 5 and c.count_load_time != NOT_RUNNING:
                c.count_load_time = later(c.count_load_time, max(when - self.stopped[channel], 0))
        return cython.cast(cython.p_uchar, cython.address(saved))[: cython.sizeof(kvm_pit_state2)]

    def restore(self, data: bytes, now=None) -> None:
        """The inverse; values that no channel can have are brought into range. Raises BadInput.

        A count that was loaded later than `now` (so by another host's clock) starts at `now`.
        """
        channel: cython.int
        when: int64_t = monotonic_ns() if now is None else now
        if len(data) != cython.sizeof(kvm_pit_state2):
            raise BadInput(f"PIT state of {len(data)} bytes; it must be {cython.sizeof(kvm_pit_state2)}")
        memcpy(cython.address(self.pit), cython.cast(cython.p_uchar, data), cython.sizeof(kvm_pit_state2))
        self.pit.flags &= KVM_PIT_FLAGS_SPEAKER_DATA_ON
        memset(self.pit.reserved, 0, cython.sizeof(self.pit.reserved))
        for channel in range(3):
            c = cython.address(self.pit.channels[channel])
            if c.mode > 5:  # KVM's mode before a control word: 0xff
                c.mode = 0
                c.count = 0
            c.count = min(c.count, 0x10000)
            c.bcd = c.bcd != 0
            c.gate = channel != 2 or c.gate != 0
            if c.rw_mode < LOW or c.rw_mode > WORD:
                c.rw_mode = WORD
            if c.rw_mode != WORD or c.read_state != WORD_HIGH:
                c.read_state = c.rw_mode
            if c.rw_mode != WORD or c.write_state != WORD_HIGH:
                c.write_state = c.rw_mode
            if c.count_latched and (c.rw_mode != WORD or c.count_latched != HIGH):
                c.count_latched = c.rw_mode
            c.status_latched = c.status_latched != 0
            if c.count == 0:
                c.count_load_time = NOT_RUNNING
            elif c.count_load_time > when:
                c.count_load_time = when
            elif c.count_load_time < 0:
                c.count_load_time = NOT_RUNNING if c.mode != 2 and c.mode != 3 else when
            self.stopped[channel] = when
        self.schedule(when)
