"""A 16550A serial port with its FIFOs, as PC16550D's data sheet has it. A byte takes no time on the wire.

Output: a byte written costs no system call. Bytes wait in `tx` until the guest shows that it is done (it turns the
transmit interrupt off, which Linux does after each console message and each write), until a newline (with
`line_buffered`), until `tx` is nearly full, or until `flush`, which the pump calls some milliseconds after `notify`.
While the sink takes no more, the port says that it is still sending: the guest waits, and the host does not.

Input: `receive` puts bytes in a backlog, the wire as it were, from which the receive FIFO fills as the guest reads.
"""

import cython
from cython.cimports.libc.stdint import uint8_t, uint64_t
from cython.cimports.libc.string import memcpy, memmove

from kvmkit.devices.lines import nobody, unconnected
from kvmkit.devices.saved import checked
from kvmkit.devices.serial_state import TRIGGER_LEVELS, Fcr, Ier, Iir, Lcr, Lsr, Mcr, Msr, SerialState

# The same names for C (declared so: an annotation here would leave them Python objects, and slow ones, flags of an
# enumeration). The values stand in serial_state.
IER_RECEIVED = cython.declare(cython.int, Ier.RECEIVED)
IER_TRANSMIT_EMPTY = cython.declare(cython.int, Ier.TRANSMIT_EMPTY)
IER_LINE_STATUS = cython.declare(cython.int, Ier.LINE_STATUS)
IER_MODEM_STATUS = cython.declare(cython.int, Ier.MODEM_STATUS)
IER_ALL = cython.declare(cython.int, IER_RECEIVED | IER_TRANSMIT_EMPTY | IER_LINE_STATUS | IER_MODEM_STATUS)
IIR_LINE_STATUS = cython.declare(cython.int, Iir.LINE_STATUS.value)
IIR_RECEIVED = cython.declare(cython.int, Iir.RECEIVED.value)
IIR_TIMEOUT = cython.declare(cython.int, Iir.TIMEOUT.value)
IIR_TRANSMIT_EMPTY = cython.declare(cython.int, Iir.TRANSMIT_EMPTY.value)
IIR_MODEM_STATUS = cython.declare(cython.int, Iir.MODEM_STATUS.value)
IIR_NONE = cython.declare(cython.int, Iir.NONE.value)
IIR_FIFO_ENABLED = cython.declare(cython.int, Iir.FIFO_ENABLED.value)
FCR_ENABLE = cython.declare(cython.int, Fcr.ENABLE)
FCR_CLEAR_RECEIVER = cython.declare(cython.int, Fcr.CLEAR_RECEIVER)
FCR_KEPT = cython.declare(cython.int, Fcr.ENABLE | Fcr.DMA_MODE | Fcr.TRIGGER)
LCR_BREAK = cython.declare(cython.int, Lcr.BREAK)
LCR_DIVISOR_LATCH = cython.declare(cython.int, Lcr.DIVISOR_LATCH)
MCR_DTR = cython.declare(cython.int, Mcr.DTR)
MCR_RTS = cython.declare(cython.int, Mcr.RTS)
MCR_OUT1 = cython.declare(cython.int, Mcr.OUT1)
MCR_OUT2 = cython.declare(cython.int, Mcr.OUT2)
MCR_LOOPBACK = cython.declare(cython.int, Mcr.LOOPBACK)
MCR_ALL = cython.declare(cython.int, 0x1F)
LSR_DATA_READY = cython.declare(cython.int, Lsr.DATA_READY)
LSR_OVERRUN = cython.declare(cython.int, Lsr.OVERRUN)
LSR_BROKEN = cython.declare(cython.int, Lsr.BREAK | Lsr.FRAMING)
LSR_EMPTY = cython.declare(cython.int, Lsr.HOLDING_EMPTY | Lsr.TRANSMITTER_EMPTY)
LSR_FIFO_ERROR = cython.declare(cython.int, Lsr.FIFO_ERROR)
MSR_CTS = cython.declare(cython.int, Msr.CTS)
MSR_DSR = cython.declare(cython.int, Msr.DSR)
MSR_RI = cython.declare(cython.int, Msr.RI)
MSR_DCD = cython.declare(cython.int, Msr.DCD)
MSR_TRAILING_RI = cython.declare(cython.int, Msr.TRAILING_RI)
TRIGGER: cython.int[4] = list(TRIGGER_LEVELS)

# Linux's driver reads until nothing is left and gives up after 256 x 512 bytes, with an edge-triggered line then high
# for good. So the line falls once in a while, however fast the host refills.
LONGEST_BURST = cython.declare(cython.int, 2 * BACKLOG)


@cython.cclass
class SerialPort(Device):
    """One port: 8 registers. `flow_control`: bytes wait in the backlog until the guest sets RTS.

    `watched` is the pump's word that it will call `flush` soon without being told; `starved` its wish to be told
    when half of the backlog is free.
    """

    def __init__(self, sink, irq=unconnected, *, line_buffered: bool = False, flow_control: bool = False):
        self.sink = sink
        self.irq = irq
        self.notify = nobody
        self.line_buffered = line_buffered
        self.flow_control = flow_control
        self.received = self.transmitted = self.lost = 0
        self.watched = self.starved = False
        self.flushing = self.signalling = self.turned = False
        self.level = 0
        self.backlog_first = self.backlog_count = 0
        self.tx_count = 0
        self.reset_registers()

    @cython.cfunc
    def reset_registers(self) -> cython.void:
        self.ier = self.fcr = self.lcr = self.mcr = self.scratch = self.errors = self.changes = 0
        self.divisor = 12
        self.transmit_interrupt = False
        self.fifo_first = self.fifo_count = 0
        self.burst = 0

    def reset(self) -> None:
        """The state after power on. What is in the backlog or not sent yet is on the wire already, and stays."""
        self.reset_registers()
        self.update()

    # What follows from the state.

    @cython.cfunc
    @cython.exceptval(check=False)
    def holding_empty(self) -> cython.bint:
        """A driver that sees THRE may write a FIFO's worth at once."""
        return self.tx_count <= TX - FIFO

    @cython.cfunc
    @cython.exceptval(check=False)
    def capacity(self) -> cython.int:
        return FIFO if self.fcr & FCR_ENABLE else 1

    @cython.cfunc
    @cython.exceptval(check=False)
    def identify(self) -> cython.int:
        """IIR without the FIFO bits: the pending interrupt of the highest priority.

        With fewer bytes than the trigger level nothing more is on the wire, so the character timeout is over at once.
        """
        if self.errors and self.ier & IER_LINE_STATUS:
            return IIR_LINE_STATUS
        if self.fifo_count and self.ier & IER_RECEIVED:
            if self.fcr & FCR_ENABLE and self.fifo_count < TRIGGER[self.fcr >> 6]:
                return IIR_TIMEOUT
            return IIR_RECEIVED
        if self.transmit_interrupt and self.ier & IER_TRANSMIT_EMPTY and self.holding_empty():
            return IIR_TRANSMIT_EMPTY
        if self.changes and self.ier & IER_MODEM_STATUS:
            return IIR_MODEM_STATUS
        return IIR_NONE

    @cython.cfunc
    @cython.exceptval(check=False)
    def modem_lines(self) -> uint8_t:
        """MSR's upper half: a modem that is there and ready, or in loopback the port's own outputs."""
        lines: cython.int = 0
        if not self.mcr & MCR_LOOPBACK:
            return MSR_CTS | MSR_DSR | MSR_DCD
        if self.mcr & MCR_RTS:
            lines |= MSR_CTS
        if self.mcr & MCR_DTR:
            lines |= MSR_DSR
        if self.mcr & MCR_OUT1:
            lines |= MSR_RI
        if self.mcr & MCR_OUT2:
            lines |= MSR_DCD
        return lines

    @cython.cfunc
    @cython.exceptval(check=False)
    def wanted_level(self) -> cython.int:
        return self.mcr & MCR_OUT2 != 0 and self.mcr & MCR_LOOPBACK == 0 and self.identify() != IIR_NONE

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def update(self) -> cython.int:
        """Set the interrupt line. `irq` may let another thread in here, which then leaves it to us.

        A line that fell and rose again meanwhile owes the guest an edge: its handler has seen it low and has returned.
        """
        level: cython.int = self.wanted_level()
        if self.signalling:
            self.turned = self.turned or level != self.level
            return 0
        self.signalling = True
        try:
            while True:
                level = self.wanted_level()
                if level != self.level:
                    self.turned = False
                    self.level = level
                    self.irq(level)
                elif self.turned and level:
                    self.turned = False
                    self.irq(0)
                    self.irq(1)
                else:
                    self.turned = False
                    break
        finally:
            self.signalling = False
        return 0

    # Receiving.

    @cython.cfunc
    @cython.exceptval(check=False)
    def push(self, value: uint8_t, error: uint8_t) -> cython.void:
        """One byte into the FIFO. Without room it is lost, as in the chip: only loopback and a break come to that."""
        capacity: cython.int = self.capacity()
        if self.fifo_count >= capacity:
            self.errors |= LSR_OVERRUN
            if capacity == 1:  # the holding register is overwritten, the FIFO is not
                self.fifo[self.fifo_first] = value
            return
        self.fifo[(self.fifo_first + self.fifo_count) % FIFO] = value
        self.fifo_count += 1
        self.errors |= error

    @cython.cfunc
    @cython.exceptval(check=False)
    def refill(self) -> cython.void:
        """Bytes from the wire, as far as the guest is ready for them."""
        if self.mcr & MCR_LOOPBACK or (self.flow_control and not self.mcr & MCR_RTS):
            return
        if self.burst >= LONGEST_BURST:
            return
        while self.backlog_count and self.fifo_count < self.capacity():
            self.push(self.backlog[self.backlog_first], 0)
            self.backlog_first = (self.backlog_first + 1) % BACKLOG
            self.backlog_count -= 1

    def room(self) -> int:
        """How many bytes `receive` would take."""
        return BACKLOG - self.backlog_count

    def receive(self, data: bytes) -> int:
        """Bytes for the guest; the number taken. The rest is to be offered again when there is `room`."""
        source: cython.const[cython.uchar][:] = data
        taken: cython.int = min(source.shape[0], BACKLOG - self.backlog_count)
        i: cython.int
        for i in range(taken):
            self.backlog[(self.backlog_first + self.backlog_count) % BACKLOG] = source[i]
            self.backlog_count += 1
        self.received += taken
        if self.fifo_count == 0:
            self.burst = 0
        self.refill()
        self.update()
        return taken

    def receive_break(self) -> None:
        """A break on the line: a null byte with a framing error, which Linux's console takes for SysRq."""
        self.push(0, LSR_BROKEN)
        self.update()

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def read_data(self) -> cython.int:
        value: uint8_t = 0
        if self.fifo_count:
            value = self.fifo[self.fifo_first]
            self.fifo_first = (self.fifo_first + 1) % FIFO
            self.fifo_count -= 1
            self.burst += 1
            self.refill()
            if self.fifo_count == 0:
                if self.backlog_count:  # the burst was too long: the line falls, and rises with the next byte
                    self.update()
                self.burst = 0
                self.refill()
            self.update()
            if self.starved and self.backlog_count <= BACKLOG // 2:
                self.starved = False
                self.notify()
        return value

    # Sending.

    @property
    def pending(self) -> int:
        """Bytes that the sink has not taken yet."""
        return self.tx_count

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def transmit(self, value: uint8_t) -> cython.int:
        if self.mcr & MCR_LOOPBACK:
            self.push(value, 0)
        elif self.tx_count == TX:
            self.lost += 1  # a driver that does not look at THRE
        else:
            self.tx[self.tx_count] = value
            self.tx_count += 1
            self.transmitted += 1
            if (self.line_buffered and value == 0x0A) or not self.holding_empty():
                self.drain()
            elif not self.watched:
                self.watched = True
                self.notify()
        self.transmit_interrupt = True
        return self.update()

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def drain(self) -> cython.int:
        """Offer `tx` to the sink. The sink may let other threads run, which may only append meanwhile."""
        if self.flushing or self.tx_count == 0:
            return 0
        self.flushing = True
        try:
            taken: cython.int = self.sink.write(self.tx[: self.tx_count])
            taken = max(0, min(taken, self.tx_count))
            self.tx_count -= taken
            memmove(cython.address(self.tx[0]), cython.address(self.tx[taken]), self.tx_count)
        finally:
            self.flushing = False
        if self.tx_count and not self.watched:
            self.watched = True
            self.notify()
        return 0

    def flush(self) -> int:
        """Offer the sink what waits; how much still waits. A guest that was held back goes on."""
        self.drain()
        self.update()
        return self.tx_count

    # Registers.

    @cython.ccall
    def read(self, offset: uint64_t, size: cython.uint) -> uint64_t:
        value: uint64_t = 0
        i: cython.uint
        for i in range(size):
            value |= cython.cast(uint64_t, self.read_register((offset + i) & 7)) << (8 * i)
        return value

    @cython.ccall
    def write(self, offset: uint64_t, size: cython.uint, value: uint64_t):
        i: cython.uint
        for i in range(size):
            self.write_register((offset + i) & 7, (value >> (8 * i)) & 0xFF)

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def read_register(self, register: cython.int) -> cython.int:
        value: cython.int
        if register == 0:
            return self.divisor & 0xFF if self.lcr & LCR_DIVISOR_LATCH else self.read_data()
        if register == 1:
            return self.divisor >> 8 if self.lcr & LCR_DIVISOR_LATCH else self.ier
        if register == 2:
            value = self.identify()
            if value == IIR_TRANSMIT_EMPTY:
                self.transmit_interrupt = False
                self.update()
            return value | (IIR_FIFO_ENABLED if self.fcr & FCR_ENABLE else 0)
        if register == 3:
            return self.lcr
        if register == 4:
            return self.mcr
        if register == 5:
            value = self.errors
            if self.fifo_count:
                value |= LSR_DATA_READY
            if self.holding_empty():
                value |= LSR_EMPTY
            if self.fcr & FCR_ENABLE and self.errors & LSR_BROKEN:
                value |= LSR_FIFO_ERROR
            if self.errors:
                self.errors = 0
                self.update()
            return value
        if register == 6:
            value = self.modem_lines() | self.changes
            if self.changes:
                self.changes = 0
                self.update()
            return value
        return self.scratch

    @cython.cfunc
    @cython.exceptval(-1, check=False)
    def write_register(self, register: cython.int, value: uint8_t) -> cython.int:
        if register == 0:
            if not self.lcr & LCR_DIVISOR_LATCH:
                return self.transmit(value)
            self.divisor = (self.divisor & 0xFF00) | value
        elif register == 1:
            if self.lcr & LCR_DIVISOR_LATCH:
                self.divisor = (self.divisor & 0xFF) | (value << 8)
                return 0
            if value & ~self.ier & IER_TRANSMIT_EMPTY:
                self.transmit_interrupt = True  # turned on while there is room: told at once
            self.ier = value & IER_ALL
            if self.tx_count and not self.ier & IER_TRANSMIT_EMPTY:
                self.drain()  # the driver is done sending
        elif register == 2:
            self.write_fcr(value)
        elif register == 3:
            if value & ~self.lcr & LCR_BREAK and self.mcr & MCR_LOOPBACK:
                self.push(0, LSR_BROKEN)
            self.lcr = value
        elif register == 4:
            self.write_mcr(value)
        elif register == 7:
            self.scratch = value
        return self.update()  # 5 and 6 are read-only: what the data sheet calls factory testing

    @cython.cfunc
    @cython.exceptval(check=False)
    def write_fcr(self, value: uint8_t) -> cython.void:
        """What the transmit FIFO holds has left it at once, so there is never anything there to clear."""
        if (value ^ self.fcr) & FCR_ENABLE or (value & FCR_ENABLE and value & FCR_CLEAR_RECEIVER):
            self.fifo_first = self.fifo_count = 0
            self.errors = 0
        self.fcr = value & FCR_KEPT if value & FCR_ENABLE else 0
        self.refill()

    @cython.cfunc
    @cython.exceptval(check=False)
    def write_mcr(self, value: uint8_t) -> cython.void:
        before: cython.int = self.modem_lines()
        self.mcr = value & MCR_ALL
        now: cython.int = self.modem_lines()
        changed: cython.int = (before ^ now) >> 4
        if now & MSR_RI:
            changed &= ~MSR_TRAILING_RI  # RI tells of its end only
        self.changes |= changed
        self.refill()

    # Saved state.

    def state(self) -> SerialState:
        i: cython.int
        return SerialState(
            divisor=self.divisor,
            ier=self.ier,
            fcr=self.fcr,
            lcr=self.lcr,
            mcr=self.mcr,
            line_errors=self.errors,
            modem_changes=self.changes,
            scratch=self.scratch,
            transmit_interrupt=bool(self.transmit_interrupt),
            fifo=bytes([self.fifo[(self.fifo_first + i) % FIFO] for i in range(self.fifo_count)]),
            backlog=bytes([self.backlog[(self.backlog_first + i) % BACKLOG] for i in range(self.backlog_count)]),
            unsent=self.tx[: self.tx_count],
        )

    def restore(self, state: object) -> None:
        """Take a saved state. Raises BadInput when it can't be one; nothing has changed then."""
        new = checked(state, SerialState, "a serial port")
        fifo: bytes = new.fifo
        backlog: bytes = new.backlog
        unsent: bytes = new.unsent
        self.divisor = new.divisor
        self.ier = new.ier
        self.fcr = new.fcr & FCR_KEPT if new.fcr & FCR_ENABLE else 0
        self.lcr = new.lcr
        self.mcr = new.mcr
        self.errors = new.line_errors
        self.changes = new.modem_changes
        self.scratch = new.scratch
        self.transmit_interrupt = new.transmit_interrupt
        self.burst = self.fifo_first = self.backlog_first = 0
        self.fifo_count = min(len(fifo), self.capacity())
        self.backlog_count = len(backlog)
        self.tx_count = len(unsent)
        memcpy(cython.address(self.fifo[0]), cython.cast(cython.p_char, fifo), self.fifo_count)
        memcpy(cython.address(self.backlog[0]), cython.cast(cython.p_char, backlog), self.backlog_count)
        memcpy(cython.address(self.tx[0]), cython.cast(cython.p_char, unsent), self.tx_count)
        self.level = -1  # whatever the line was: say it again
        self.update()
        if self.tx_count:
            self.watched = True
            self.notify()
