from libc.stdint cimport uint8_t, uint64_t

from kvmkit.bus.device cimport Device

cdef enum:
    FIFO = 16
    BACKLOG = 4096
    TX = 4096

cdef class SerialPort(Device):
    cdef uint8_t ier, fcr, lcr, mcr, scratch
    cdef uint8_t errors         # LSR's error bits, which a read of it clears
    cdef uint8_t changes        # MSR's delta bits, likewise
    cdef int divisor
    cdef bint transmit_interrupt  # THRE is to be told
    cdef uint8_t fifo[FIFO]
    cdef int fifo_first, fifo_count
    cdef uint8_t backlog[BACKLOG]
    cdef int backlog_first, backlog_count
    cdef int burst              # bytes read since the receive interrupt was last off
    cdef uint8_t tx[TX]
    cdef int tx_count
    cdef bint flushing
    cdef bint line_buffered
    cdef bint flow_control
    cdef int level
    cdef bint signalling
    cdef bint turned            # the line is not what it was when `signalling` began, or was not for a moment
    cdef public bint watched
    cdef public bint starved
    cdef public object sink
    cdef public object irq
    cdef public object notify
    cdef readonly uint64_t received, transmitted, lost

    cdef void reset_registers(self)
    cdef bint holding_empty(self) noexcept
    cdef int capacity(self) noexcept
    cdef int identify(self) noexcept
    cdef uint8_t modem_lines(self) noexcept
    cdef void refill(self) noexcept
    cdef void push(self, uint8_t value, uint8_t error) noexcept
    cdef int wanted_level(self) noexcept
    cdef int update(self) except -1
    cdef int transmit(self, uint8_t value) except -1
    cdef int drain(self) except -1
    cdef int read_data(self) except -1
    cdef int read_register(self, int register) except -1
    cdef int write_register(self, int register, uint8_t value) except -1
    cdef void write_mcr(self, uint8_t value) noexcept
    cdef void write_fcr(self, uint8_t value) noexcept
