"""The 16550's registers by name, and what of one is saved. Source: PC16550D data sheet (National Semiconductor)."""

from __future__ import annotations

from enum import IntFlag
from typing import Annotated

import msgspec
from msgspec import Meta

FIFO_BYTES = 16
BACKLOG_BYTES = 4096
TX_BYTES = 4096
CLOCK_HZ = 1_843_200


class Ier(IntFlag):
    """Interrupt enable, offset 1."""

    RECEIVED = 1
    TRANSMIT_EMPTY = 2
    LINE_STATUS = 4
    MODEM_STATUS = 8


class Iir(IntFlag):
    """Interrupt identification, offset 2 when read. The values of the low four bits, by falling priority."""

    LINE_STATUS = 6
    RECEIVED = 4
    TIMEOUT = 12
    TRANSMIT_EMPTY = 2
    MODEM_STATUS = 0
    NONE = 1
    FIFO_ENABLED = 0xC0


class Fcr(IntFlag):
    """FIFO control, offset 2 when written. Bits 6 and 7 choose the trigger level."""

    ENABLE = 1
    CLEAR_RECEIVER = 2
    CLEAR_TRANSMITTER = 4
    DMA_MODE = 8
    TRIGGER = 0xC0


TRIGGER_LEVELS = (1, 4, 8, 14)


class Lcr(IntFlag):
    """Line control, offset 3."""

    WORD_LENGTH = 3
    BREAK = 0x40
    DIVISOR_LATCH = 0x80


class Mcr(IntFlag):
    """Modem control, offset 4. On a PC, OUT2 opens the gate between the chip and the interrupt line."""

    DTR = 1
    RTS = 2
    OUT1 = 4
    OUT2 = 8
    LOOPBACK = 0x10


class Lsr(IntFlag):
    """Line status, offset 5."""

    DATA_READY = 1
    OVERRUN = 2
    PARITY = 4
    FRAMING = 8
    BREAK = 0x10
    HOLDING_EMPTY = 0x20
    TRANSMITTER_EMPTY = 0x40
    FIFO_ERROR = 0x80


class Msr(IntFlag):
    """Modem status, offset 6: four bits that say what changed since the last read, and the four lines."""

    DELTA_CTS = 1
    DELTA_DSR = 2
    TRAILING_RI = 4
    DELTA_DCD = 8
    CTS = 0x10
    DSR = 0x20
    RI = 0x40
    DCD = 0x80


Byte = Annotated[int, Meta(ge=0, le=0xFF)]
Nibble = Annotated[int, Meta(ge=0, le=0x0F)]


class SerialState(msgspec.Struct, forbid_unknown_fields=True):
    """One port: its registers, the received bytes (`fifo`, the next first) and what is on its way in and out."""

    divisor: Annotated[int, Meta(ge=0, le=0xFFFF)] = 12
    ier: Nibble = 0
    fcr: Byte = 0
    lcr: Byte = 0
    mcr: Annotated[int, Meta(ge=0, le=0x1F)] = 0
    line_errors: Annotated[int, Meta(ge=0, le=0x1E)] = 0
    modem_changes: Nibble = 0
    scratch: Byte = 0
    transmit_interrupt: bool = False
    fifo: Annotated[bytes, Meta(max_length=FIFO_BYTES)] = b""
    backlog: Annotated[bytes, Meta(max_length=BACKLOG_BYTES)] = b""
    unsent: Annotated[bytes, Meta(max_length=TX_BYTES)] = b""
