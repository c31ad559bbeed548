"""The PC's real-time clock and CMOS memory: MC146818 (Motorola data sheet), with the PC's memory-size bytes.

Nothing ticks: the time of day is the host's clock plus an offset, and what a tick would have flagged is worked out
when somebody looks, or when the deadline comes for an interrupt that the guest has enabled.
"""

from __future__ import annotations

import threading
import time
from enum import IntEnum, IntFlag
from typing import Annotated

import msgspec
from msgspec import Meta

from kvmkit.bus import Device
from kvmkit.devices.lines import SECOND, Clock, Line, OutputLine, nobody, unconnected
from kvmkit.devices.saved import checked

CMOS_BYTES = 128
UPDATE_WARNING_NS = 244_000
"""So long before an update, UIP says that the time is about to change."""
DAY = 86_400
CRYSTAL_HZ = 32_768
LAST_YEAR = 2200
"""The latest a guest can set: nanoseconds since 1970 fit in 63 bits until 2262."""
PM = 0x80
ANY = 0xC0
"""An alarm byte with both upper bits set matches every value."""


class Reg(IntEnum):
    """What stands where in CMOS memory."""

    SECONDS = 0x00
    SECONDS_ALARM = 0x01
    MINUTES = 0x02
    MINUTES_ALARM = 0x03
    HOURS = 0x04
    HOURS_ALARM = 0x05
    WEEKDAY = 0x06
    DAY = 0x07
    MONTH = 0x08
    YEAR = 0x09
    A = 0x0A
    B = 0x0B
    C = 0x0C
    D = 0x0D
    BASE_MEMORY = 0x15  # KiB below 640 KiB, u16
    EXTENDED_MEMORY = 0x17  # KiB above 1 MiB, u16, 0xfc00 at most
    EXTENDED_MEMORY_2 = 0x30
    CENTURY = 0x32
    MEMORY_ABOVE_16M = 0x34  # 64 KiB pieces, u16
    MEMORY_ABOVE_4G = 0x5B  # 64 KiB pieces, three bytes


class A(IntFlag):
    RATE = 0x0F
    DIVIDER = 0x70
    UPDATE_IN_PROGRESS = 0x80


class B(IntFlag):
    DAYLIGHT_SAVING = 1
    HOURS_24 = 2
    BINARY = 4
    SQUARE_WAVE = 8
    UPDATE_INTERRUPT = 0x10
    ALARM_INTERRUPT = 0x20
    PERIODIC_INTERRUPT = 0x40
    SET = 0x80


class C(IntFlag):
    UPDATE = 0x10
    ALARM = 0x20
    PERIODIC = 0x40
    REQUEST = 0x80


VALID_RAM_AND_TIME = 0x80
RUNNING = 0x20
"""A's divider bits for a 32768 Hz crystal; the others stop or reset the divider, which we don't follow."""

_TIME = (Reg.SECONDS, Reg.MINUTES, Reg.HOURS, Reg.WEEKDAY, Reg.DAY, Reg.MONTH, Reg.YEAR, Reg.CENTURY)


class RtcState(msgspec.Struct, forbid_unknown_fields=True):
    """`offset_ns` is how far the guest's clock is before the host's; `seen_ns` up to when flags are worked out."""

    memory: Annotated[bytes, Meta(min_length=CMOS_BYTES, max_length=CMOS_BYTES)]
    index: Annotated[int, Meta(ge=0, lt=CMOS_BYTES)] = 0
    flags: Annotated[int, Meta(ge=0, le=0xF0)] = 0
    offset_ns: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0
    seen_ns: Annotated[int, Meta(ge=-(2**63), le=2**63 - 1)] = 0


class Rtc(Device):
    """Ports 0x70 (index) and 0x71 (data). `clock` is the time of day in UTC, in nanoseconds since 1970.

    `memory` and `high`: bytes of RAM below 4 GiB, and from there on.
    """

    def __init__(self, clock: Clock = time.time_ns, irq: Line = unconnected, *, memory: int = 0, high: int = 0) -> None:
        self.clock = clock
        self._lock = threading.RLock()  # vCPUs' threads, and the one that keeps deadlines
        self.line = OutputLine(irq)
        self.rearm = nobody
        self.index = 0
        self.flags = 0
        self.offset = 0
        self.memory = bytearray(CMOS_BYTES)
        self.memory[Reg.A] = RUNNING | 6  # 1024 Hz, as a PC's firmware leaves it
        self.memory[Reg.B] = B.HOURS_24
        self.memory[Reg.D] = VALID_RAM_AND_TIME
        self._store_memory_size(memory, high)
        self.seen = self._now()

    def _store_memory_size(self, low: int, high: int) -> None:
        self._put(Reg.BASE_MEMORY, 640, 2)
        above_1m = min(max(low - (1 << 20), 0) >> 10, 0xFC00)
        self._put(Reg.EXTENDED_MEMORY, above_1m, 2)
        self._put(Reg.EXTENDED_MEMORY_2, above_1m, 2)
        self._put(Reg.MEMORY_ABOVE_16M, max(low - (16 << 20), 0) >> 16, 2)
        self._put(Reg.MEMORY_ABOVE_4G, min(high >> 16, 0xFFFFFF), 3)

    def _put(self, at: int, value: int, size: int) -> None:
        self.memory[at : at + size] = value.to_bytes(size, "little")

    # Time.

    def _now(self) -> int:
        return self.clock() + self.offset

    def _encode(self, value: int) -> int:
        return value if self.memory[Reg.B] & B.BINARY else value // 10 << 4 | value % 10

    def _decode(self, value: int) -> int:
        return value if self.memory[Reg.B] & B.BINARY else (value >> 4) * 10 + (value & 15)

    def _encode_hour(self, hour: int) -> int:
        if self.memory[Reg.B] & B.HOURS_24:
            return self._encode(hour)
        return self._encode(hour % 12 or 12) | (PM if hour >= 12 else 0)

    def _decode_hour(self, value: int) -> int:
        if self.memory[Reg.B] & B.HOURS_24:
            return self._decode(value)
        return self._decode(value & ~PM) % 12 + (12 if value & PM else 0)

    def _load_time(self) -> None:
        """Put the time of now into the registers, unless the guest has stopped them to set it."""
        if self.memory[Reg.B] & B.SET:
            return
        now = time.gmtime(min(max(self._now() // SECOND, 0), 253_402_300_799))  # to the end of year 9999
        values = (now.tm_sec, now.tm_min, None, (now.tm_wday + 1) % 7 + 1, now.tm_mday, now.tm_mon, now.tm_year % 100)
        for register, value in zip(_TIME, values, strict=False):
            if value is not None:
                self.memory[register] = self._encode(value)
        self.memory[Reg.HOURS] = self._encode_hour(now.tm_hour)
        self.memory[Reg.CENTURY] = self._encode(now.tm_year // 100)

    def _take_time(self) -> None:
        """Make the registers' time the time of now. What is no time (month 0, day 99) is brought into range."""
        from calendar import monthrange, timegm  # a guest seldom sets its clock

        memory = self.memory
        year = self._decode(memory[Reg.CENTURY]) * 100 + self._decode(memory[Reg.YEAR])
        year = min(max(year, 1970), LAST_YEAR)
        month = min(max(self._decode(memory[Reg.MONTH]), 1), 12)
        day = min(max(self._decode(memory[Reg.DAY]), 1), monthrange(year, month)[1])
        hour = min(self._decode_hour(memory[Reg.HOURS]), 23)
        minute = min(self._decode(memory[Reg.MINUTES]), 59)
        second = min(self._decode(memory[Reg.SECONDS]), 59)
        wanted = timegm((year, month, day, hour, minute, second)) * SECOND
        self.offset = wanted + SECOND // 2 - self.clock()  # the first update comes half a second after SET is cleared
        self.seen = self._now()

    # What ticks would have flagged.

    def _period(self) -> int | None:
        """Nanoseconds between periodic interrupts."""
        rate = self.memory[Reg.A] & int(A.RATE)
        if rate == 0:
            return None
        if rate < 3:
            rate += 7  # with this crystal, rates 1 and 2 are those of 8 and 9
        return SECOND * (1 << (rate - 1)) // CRYSTAL_HZ

    def _next_alarm(self, after: int) -> int | None:
        """The first alarm (ns) later than `after`, or None when its bytes are no time."""
        fields = []
        for register, limit, decode in (
            (Reg.HOURS_ALARM, 24, self._decode_hour),
            (Reg.MINUTES_ALARM, 60, self._decode),
            (Reg.SECONDS_ALARM, 60, self._decode),
        ):
            raw = self.memory[register]
            if raw & ANY == ANY:
                fields.append(range(limit))
            else:
                value = decode(raw)
                if value >= limit:
                    return None
                fields.append(range(value, value + 1))
        hours, minutes, seconds = fields
        start = after // SECOND + 1
        midnight = start // DAY * DAY
        of_day = start - midnight
        for hour in hours:
            for minute in minutes:
                base = hour * 3600 + minute * 60
                if base + seconds[-1] >= of_day:
                    return (midnight + max(base + seconds[0], of_day)) * SECOND
        return (midnight + DAY + hours[0] * 3600 + minutes[0] * 60 + seconds[0]) * SECOND

    def _advance(self) -> None:
        """Set the flags of everything that happened since it was last looked at."""
        now = self._now()
        if now < self.seen:  # the host's clock was set back
            self.seen = now
        if not self.memory[Reg.B] & B.SET:
            if now // SECOND > self.seen // SECOND:
                self.flags |= C.UPDATE
            alarm = self._next_alarm(self.seen)
            if alarm is not None and alarm <= now:
                self.flags |= C.ALARM
        period = self._period()
        if period is not None and now // period > self.seen // period:
            self.flags |= C.PERIODIC
        self.seen = now
        self._update_line()

    def _update_line(self) -> None:
        enabled = self.flags & self.memory[Reg.B] & (C.UPDATE | C.ALARM | C.PERIODIC)  # the same bits in B and C
        self.flags = self.flags & ~C.REQUEST | (C.REQUEST if enabled else 0)
        self.line.update(1 if enabled else 0)

    def deadline(self) -> int | None:
        """See Timed. A guest that has not read C since the last interrupt gets no other, however fast its rate."""
        with self._lock:
            return self._deadline()

    def _deadline(self) -> int | None:
        enabled = self.memory[Reg.B]
        if self.flags & C.REQUEST:
            return None
        now = self._now()
        moments = []
        if not enabled & B.SET:
            if enabled & B.UPDATE_INTERRUPT:
                moments.append((self.seen // SECOND + 1) * SECOND)
            if enabled & B.ALARM_INTERRUPT and (alarm := self._next_alarm(self.seen)) is not None:
                moments.append(alarm)
        if enabled & B.PERIODIC_INTERRUPT and (period := self._period()) is not None:
            moments.append((self.seen // period + 1) * period)
        return max(min(moments) - now, 0) if moments else None

    def expire(self) -> None:
        with self._lock:
            self._advance()

    # Registers.

    def read(self, offset: int, size: int) -> int:
        if offset != 1 or size != 1:
            return 0xFFFFFFFFFFFFFFFF  # the index can't be read back
        with self._lock:
            return self._read_register(self.index)

    def _read_register(self, register: int) -> int:
        if register in _TIME:
            self._load_time()
        elif register == Reg.A:
            left = SECOND - self._now() % SECOND
            about_to = left <= UPDATE_WARNING_NS and not self.memory[Reg.B] & B.SET
            return self.memory[Reg.A] | (A.UPDATE_IN_PROGRESS if about_to else 0)
        elif register == Reg.C:
            self._advance()
            value = self.flags
            self.flags = 0
            self._update_line()
            if self.memory[Reg.B] & (B.PERIODIC_INTERRUPT | B.ALARM_INTERRUPT | B.UPDATE_INTERRUPT):
                self.rearm()
            return value
        return self.memory[register]

    def write(self, offset: int, size: int, value: int) -> None:
        with self._lock:
            if offset == 0:
                self.index = value & 0x7F  # bit 7 masks NMI, and there is none
                if size > 1:
                    self._write_register(self.index, value >> 8 & 0xFF)
            else:
                self._write_register(self.index, value & 0xFF)

    def _write_register(self, register: int, value: int) -> None:
        if register in (Reg.C, Reg.D):
            return
        if register in _TIME:
            self._load_time()
            self.memory[register] = value
            if not self.memory[Reg.B] & B.SET:
                self._take_time()
        elif register == Reg.A:
            self._advance()
            self.memory[Reg.A] = value & ~A.UPDATE_IN_PROGRESS
        elif register == Reg.B:
            self._write_b(value)
        else:
            self._advance()
            self.memory[register] = value
        if register <= Reg.B:
            self.rearm()

    def _write_b(self, value: int) -> None:
        self._advance()
        before = self.memory[Reg.B]
        if value & B.SET:
            self._load_time()  # the registers stand still from here on
            value &= ~B.UPDATE_INTERRUPT
        if before & B.SET and not value & B.SET:
            # Linux sets the format and the time in one go: the bytes are in the format that B has now.
            self.memory[Reg.B] = value
            self._take_time()
        self.memory[Reg.B] = value
        self._update_line()

    # Saved state.

    def state(self) -> RtcState:
        return RtcState(
            memory=bytes(self.memory),
            index=self.index,
            flags=int(self.flags),
            offset_ns=self.offset,
            seen_ns=self.seen,
        )

    def restore(self, state: object) -> None:
        """Take a saved state: the guest's clock then shows the host's time, by the offset the guest had given it."""
        new = checked(state, RtcState, "the clock")
        self.memory[:] = new.memory
        self.index, self.flags, self.offset, self.seen = new.index, new.flags, new.offset_ns, new.seen_ns
        self._update_line()
        self.rearm()
