"""The 16550, as a driver sees it: Linux's probing, its interrupts, its sending and receiving."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from kvmkit.devices.serial import SerialPort
from kvmkit.devices.serial_state import BACKLOG_BYTES, FIFO_BYTES, TX_BYTES, Fcr, Ier, Iir, Lcr, Lsr, Mcr, Msr
from kvmkit.errors import BadInput

DATA, IER, IIR, FCR, LCR, MCR, LSR, MSR, SCR = 0, 1, 2, 2, 3, 4, 5, 6, 7


class Sink:
    """Takes up to `room` bytes (None: all)."""

    def __init__(self, room: int | None = None) -> None:
        self.data = b""
        self.calls = 0
        self.room = room

    def write(self, data: bytes) -> int:
        self.calls += 1
        taken = len(data) if self.room is None else min(self.room, len(data))
        self.data += data[:taken]
        if self.room is not None:
            self.room -= taken
        return taken

    def fileno(self) -> int:
        return -1


class Port:
    """A port with its line written down, and short names for its registers."""

    def __init__(self, room: int | None = None, **options: bool) -> None:
        self.sink = Sink(room)
        self.levels: list[int] = []
        self.told = 0
        self.chip = SerialPort(self.sink, self.levels.append, **options)
        self.chip.notify = self._tell

    def _tell(self) -> None:
        self.told += 1

    def __getitem__(self, register: int) -> int:
        return self.chip.read(register, 1)

    def __setitem__(self, register: int, value: int) -> None:
        self.chip.write(register, 1, value)

    def ready(self, ier: int = 0, fcr: int = int(Fcr.ENABLE)) -> Port:
        """As Linux's driver has it when a terminal is open."""
        self[FCR] = fcr
        self[LCR] = 3
        self[MCR] = Mcr.DTR | Mcr.RTS | Mcr.OUT2
        self[IER] = ier
        return self

    @property
    def line(self) -> int:
        return self.levels[-1] if self.levels else 0

    @property
    def cause(self) -> int:
        return self[IIR] & 0x0F


def test_linux_recognizes_a_16550a():
    """The order of 8250_port.c's autoconfig, with what it expects at each step."""
    port = Port()
    port[IER] = 0
    assert port[IER] & 0x0F == 0
    port[IER] = 0x0F
    assert port[IER] & 0x0F == 0x0F
    port[IER] = 0
    port[MCR] = Mcr.LOOPBACK | Mcr.OUT2 | Mcr.RTS
    assert port[MSR] & 0xF0 == Msr.DCD | Msr.CTS
    port[MCR] = 0
    port[LCR] = 0xBF
    port[IIR] = 0
    port[LCR] = 0
    port[FCR] = Fcr.ENABLE
    assert port[IIR] >> 6 == 3
    port[LCR] = Lcr.DIVISOR_LATCH
    assert port[IIR] != 0, "a 16650's EFR would read 0"
    port[LCR] = 0
    port[IER] = 0x40  # the XScale's unit enable
    assert not port[IER] & 0x40
    port[FCR] = 0
    assert port[IIR] >> 6 == 0


def test_scratch_holds_a_byte():
    port = Port()
    for value in (0x55, 0xAA):
        port[SCR] = value
        assert port[SCR] == value


def test_divisor_latch_hides_data_and_interrupt_enable():
    port = Port()
    port[IER] = Ier.LINE_STATUS
    port[LCR] = Lcr.DIVISOR_LATCH | 3
    port[DATA], port[IER] = 0x34, 0x12
    assert (port[DATA], port[IER]) == (0x34, 0x12)
    port[LCR] = 3
    assert port[IER] == Ier.LINE_STATUS
    assert port.chip.state().divisor == 0x1234
    assert port.sink.data == b""


def test_wide_access_is_registers_in_a_row():
    port = Port()
    port.chip.write(LCR, 2, 0x0B << 8 | 3)
    assert (port[LCR], port[MCR]) == (3, 0x0B)
    assert port.chip.read(LCR, 4) == 3 | 0x0B << 8 | port[LSR] << 16 | port[MSR] << 24


# Sending


def test_enabling_the_transmit_interrupt_raises_it_each_time():
    port = Port().ready(Ier.TRANSMIT_EMPTY)
    assert port.line == 1
    assert port.cause == Iir.TRANSMIT_EMPTY
    assert (port.line, port.cause) == (0, Iir.NONE), "reading IIR has acknowledged it"
    port[IER] = 0
    port[IER] = Ier.TRANSMIT_EMPTY
    assert port.cause == Iir.TRANSMIT_EMPTY


def test_each_byte_sent_raises_the_transmit_interrupt_again():
    port = Port().ready(Ier.TRANSMIT_EMPTY)
    assert port.cause == Iir.TRANSMIT_EMPTY
    port[DATA] = 0x41
    assert port.line == 1
    assert port.cause == Iir.TRANSMIT_EMPTY


def test_out2_is_the_gate_of_the_interrupt():
    port = Port().ready(Ier.TRANSMIT_EMPTY)
    port[MCR] = Mcr.DTR | Mcr.RTS
    assert port.line == 0
    port[MCR] = Mcr.OUT2
    assert port.line == 1


def test_bytes_wait_for_the_driver_to_be_done_and_cost_one_write():
    port = Port().ready(Ier.TRANSMIT_EMPTY)
    for byte in b"hello":
        port[DATA] = byte
    assert port.sink.calls == 0
    port[IER] = 0
    assert (port.sink.data, port.sink.calls) == (b"hello", 1)


def test_somebody_is_told_of_the_first_waiting_byte_only():
    port = Port().ready()
    for byte in b"abc":
        port[DATA] = byte
    assert (port.told, port.chip.watched) == (1, True)
    assert port.chip.flush() == 0
    assert port.sink.data == b"abc"


def test_a_console_shows_a_line_when_it_ends():
    port = Port(line_buffered=True).ready()
    for byte in b"one\ntwo":
        port[DATA] = byte
    assert port.sink.data == b"one\n"


def test_a_full_sink_makes_the_guest_wait_and_loses_nothing():
    port = Port(room=100).ready(Ier.TRANSMIT_EMPTY)
    sent = bytearray()
    while port[LSR] & Lsr.HOLDING_EMPTY:
        for _ in range(FIFO_BYTES):  # what a driver may write when it sees THRE
            byte = len(sent) % 251
            port[DATA] = byte
            sent.append(byte)
        assert len(sent) <= 2 * TX_BYTES, "it never says stop"
    assert port.chip.pending == len(sent) - 100
    assert port.chip.lost == 0
    port[IER] = 0
    port[IER] = Ier.TRANSMIT_EMPTY
    assert (port.line, port.cause) == (0, Iir.NONE), "no room: no interrupt"
    port.sink.room = None
    assert port.chip.flush() == 0
    assert port.line == 1, "the guest goes on"
    assert port.sink.data == bytes(sent)


def test_a_driver_that_never_looks_loses_bytes_and_takes_no_memory():
    port = Port(room=0).ready()
    for _ in range(TX_BYTES + 50):
        port[DATA] = 0x2E
    assert (port.chip.pending, port.chip.lost) == (TX_BYTES, 50)


def test_a_sink_that_claims_too_much_is_not_believed():
    port = Port().ready()
    port.sink.write = lambda data: 1 << 30  # type: ignore[method-assign]  # a broken sink
    port[DATA] = 1
    assert port.chip.flush() == 0
    port.sink.write = lambda data: -5  # type: ignore[method-assign]  # another
    port[DATA] = 1
    assert port.chip.flush() == 1


# Receiving


def test_received_bytes_come_in_order_and_raise_the_line_until_read():
    port = Port().ready(Ier.RECEIVED)
    assert port.chip.receive(b"ab") == 2
    assert port.line == 1
    assert port[LSR] & Lsr.DATA_READY
    assert (port[DATA], port.line, port[DATA], port.line) == (0x61, 1, 0x62, 0)
    assert not port[LSR] & Lsr.DATA_READY


def test_trigger_level_tells_data_from_timeout():
    port = Port().ready(Ier.RECEIVED, fcr=Fcr.ENABLE | 0x80)  # 8 bytes
    port.chip.receive(b"1234567")
    assert port.cause == Iir.TIMEOUT
    port.chip.receive(b"8")
    assert port.cause == Iir.RECEIVED
    assert port[DATA] == 0x31
    assert port.cause == Iir.TIMEOUT


def test_without_fifos_there_is_one_byte_at_a_time():
    port = Port().ready(Ier.RECEIVED, fcr=0)
    port.chip.receive(b"ab")
    assert port.cause == Iir.RECEIVED
    assert len(port.chip.state().fifo) == 1
    assert (port[DATA], port[DATA]) == (0x61, 0x62)


def test_more_than_the_fifo_waits_and_no_more_than_the_backlog_is_taken():
    port = Port().ready(Ier.RECEIVED)
    data = bytes(i % 256 for i in range(3 * BACKLOG_BYTES))
    taken = 0
    got = bytearray()
    while len(got) < len(data):
        taken += port.chip.receive(data[taken:])
        assert taken - len(got) <= BACKLOG_BYTES + FIFO_BYTES
        while port[LSR] & Lsr.DATA_READY:
            got.append(port[DATA])
    assert bytes(got) == data
    assert port.chip.lost == 0


def test_who_waits_for_room_is_told_when_half_of_it_is_free():
    port = Port().ready(Ier.RECEIVED)
    assert port.chip.receive(bytes(2 * BACKLOG_BYTES)) == BACKLOG_BYTES
    port.chip.receive(bytes(FIFO_BYTES))
    assert port.chip.room() == 0
    port.chip.starved = True
    for _ in range(BACKLOG_BYTES // 2 - 1):
        port[DATA]
    assert port.told == 0
    port[DATA]
    assert (port.told, port.chip.starved) == (1, False)


def test_the_line_falls_now_and_then_however_fast_the_host_sends():
    """Linux gives up a long interrupt and would wait for an edge that never comes."""
    port = Port().ready(Ier.RECEIVED)
    port.chip.receive(bytes(FIFO_BYTES))
    for _ in range(3 * BACKLOG_BYTES):
        port.chip.receive(bytes(FIFO_BYTES))
        port[DATA]
    assert port.levels.count(0) >= 1
    assert port.line == 1


def test_flow_control_keeps_bytes_until_the_guest_is_ready():
    port = Port(flow_control=True)
    port[FCR] = Fcr.ENABLE
    port.chip.receive(b"hello")
    assert not port[LSR] & Lsr.DATA_READY
    port[FCR] = Fcr.ENABLE | Fcr.CLEAR_RECEIVER  # as a driver does when its port is opened
    port[MCR] = Mcr.RTS | Mcr.DTR | Mcr.OUT2
    assert bytes(port[DATA] for _ in range(5)) == b"hello"


def test_clearing_the_receiver_forgets_what_has_arrived():
    port = Port().ready()
    port.chip.receive(b"old")
    port[FCR] = Fcr.ENABLE | Fcr.CLEAR_RECEIVER
    assert not port[LSR] & Lsr.DATA_READY


def test_a_break_is_a_null_byte_with_an_error_of_the_highest_priority():
    port = Port().ready(Ier.RECEIVED | Ier.LINE_STATUS)
    port.chip.receive_break()
    assert port.cause == Iir.LINE_STATUS
    assert port[LSR] & (Lsr.BREAK | Lsr.FRAMING | Lsr.DATA_READY) == Lsr.BREAK | Lsr.FRAMING | Lsr.DATA_READY
    assert not port[LSR] & Lsr.BREAK, "reading LSR has cleared it"
    assert port.cause == Iir.TIMEOUT or port.cause == Iir.RECEIVED
    assert port[DATA] == 0


# Loopback and modem


def test_loopback_returns_what_is_sent_and_keeps_it_from_the_sink():
    port = Port().ready()
    port[MCR] = Mcr.LOOPBACK
    port[DATA] = 0x5A
    assert port[DATA] == 0x5A
    port.chip.flush()
    assert port.sink.data == b""


def test_loopback_overruns_after_sixteen_bytes():
    port = Port().ready()
    port[MCR] = Mcr.LOOPBACK
    for value in range(FIFO_BYTES + 1):
        port[DATA] = value
    assert port[LSR] & Lsr.OVERRUN
    assert [port[DATA] for _ in range(FIFO_BYTES)] == list(range(FIFO_BYTES))
    assert not port[LSR] & Lsr.DATA_READY


@pytest.mark.parametrize(
    ("mcr", "msr"), [(Mcr.RTS, Msr.CTS), (Mcr.DTR, Msr.DSR), (Mcr.OUT1, Msr.RI), (Mcr.OUT2, Msr.DCD)]
)
def test_loopback_wires_each_output_to_an_input(mcr, msr):
    port = Port()
    port[MCR] = Mcr.LOOPBACK | mcr
    assert port[MSR] & 0xF0 == msr


def test_modem_changes_are_told_once():
    port = Port().ready(Ier.MODEM_STATUS)
    assert port[MSR] & 0xF0 == Msr.CTS | Msr.DSR | Msr.DCD
    port[MCR] = Mcr.LOOPBACK | Mcr.OUT1
    assert port[MSR] & 0x0F == Msr.DELTA_CTS | Msr.DELTA_DSR | Msr.DELTA_DCD
    port[MCR] = Mcr.LOOPBACK
    assert port[MSR] == Msr.TRAILING_RI
    assert port[MSR] == 0
    port[MCR] = Mcr.OUT2
    assert port.cause == Iir.MODEM_STATUS
    assert port.line == 1


# Whatever a guest does

_access = st.tuples(st.integers(0, 7), st.sampled_from((1, 2, 4)), st.one_of(st.none(), st.integers(0, 2**32 - 1)))
_host = st.one_of(st.binary(max_size=40), st.just("flush"), st.just("break"))


@given(st.lists(st.one_of(_access, _host), max_size=150), st.booleans())
def test_no_access_hurts_and_any_state_can_be_saved(steps, flow_control):
    port = Port(flow_control=flow_control)
    for step in steps:
        if step == "flush":
            port.chip.flush()
        elif step == "break":
            port.chip.receive_break()
        elif isinstance(step, bytes):
            port.chip.receive(step)
        else:
            register, size, value = step
            if value is None:
                assert 0 <= port.chip.read(register, size) < 1 << 8 * size
            else:
                port.chip.write(register, size, value)
        state = port.chip.state()
        assert port.line == int(
            state.mcr & Mcr.OUT2 != 0 and state.mcr & Mcr.LOOPBACK == 0 and _pending(port.chip) != Iir.NONE
        )
    saved = msgspec.json.encode(port.chip.state())
    other = Port()
    other.chip.restore(msgspec.json.decode(saved, type=type(port.chip.state())))
    assert other.chip.state() == port.chip.state()
    assert other.line == port.line
    assert [other[r] for r in (LCR, MCR, LSR, MSR, IIR, DATA)] == [port[r] for r in (LCR, MCR, LSR, MSR, IIR, DATA)]


def _pending(chip: SerialPort) -> int:
    """IIR, without its side effect: read from a copy."""
    copy = SerialPort(Sink(0))
    copy.restore(chip.state())
    return copy.read(IIR, 1) & 0x0F


@pytest.mark.parametrize(
    "change",
    [
        {"ier": 16}, {"fifo": bytes(17)}, {"backlog": bytes(BACKLOG_BYTES + 1)}, {"unsent": bytes(TX_BYTES + 1)},
        {"divisor": -1}, {"mcr": 0x20}, {"scratch": "x"},
    ],
)  # fmt: skip
def test_a_state_that_cannot_be_is_refused_and_changes_nothing(change):
    port = Port().ready(Ier.RECEIVED)
    before = port.chip.state()
    with pytest.raises(BadInput, match="serial port"):
        port.chip.restore(msgspec.structs.replace(before, **change))
    assert port.chip.state() == before


def test_a_reset_keeps_what_is_on_the_wire():
    port = Port(room=0).ready(Ier.RECEIVED)
    port[DATA] = 0x21
    port.chip.receive(bytes(100))
    port.chip.reset()
    assert (port[IER], port[MCR], port.line) == (0, 0, 0)
    assert port.chip.pending == 1


def test_a_line_that_falls_and_rises_while_it_is_being_raised_gives_an_edge():
    """Another thread may be in the registers while `irq` is called: what the line did then is not lost."""
    levels: list[int] = []

    def irq(level: int) -> None:
        levels.append(level)
        if len(levels) == 1:  # the driver takes the byte, sees no cause, and then begins to send
            assert chip.read(DATA, 1) == ord("a")
            assert chip.read(IIR, 1) & 0x0F == Iir.NONE
            chip.write(IER, 1, Ier.RECEIVED | Ier.TRANSMIT_EMPTY)

    chip = SerialPort(Sink(), irq)
    chip.write(MCR, 1, Mcr.OUT2)
    chip.write(IER, 1, Ier.RECEIVED)
    chip.receive(b"a")
    assert levels == [1, 0, 1]
