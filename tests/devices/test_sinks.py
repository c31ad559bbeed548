"""Sinks: none blocks, the log is bounded, what is shared with others stays as it was."""

from __future__ import annotations

import os
import socket

from kvmkit.devices.sinks import ConsoleLog, FileSink, SocketSink


def test_the_log_keeps_its_end_and_no_more():
    log = ConsoleLog(keep=1000)
    for i in range(10_000):
        assert log.write(b"%09d\n" % i) == 10
    assert log.total == 100_000
    assert log.tail() == b"".join(b"%09d\n" % i for i in range(9900, 10_000))
    assert log.tail(10) == b"000009999\n"
    assert log.text(lines=2) == "000009998\n000009999"
    assert len(log._pieces) <= 2 * 1000 + 10


def test_the_log_notes_the_first_line():
    log = ConsoleLog()
    assert log.first_line_ns is None
    log.write(b"no end yet")
    assert log.first_byte_ns is not None
    assert log.first_line_ns is None
    log.write(b"\n")
    assert log.first_line_ns >= log.first_byte_ns


def test_a_full_pipe_refuses_and_stays_blocking():
    reader, writer = os.pipe()
    sink = FileSink(writer)
    total = 0
    while taken := sink.write(bytes(5000)):
        total += taken
    assert total >= 4096
    assert os.get_blocking(writer), "O_NONBLOCK would reach whoever shares the pipe"
    assert len(os.read(reader, total)) > 0
    assert sink.write(b"x") == 1
    os.close(reader)
    assert sink.write(b"x") == 1, "a reader that is gone holds nobody up"
    assert sink.gone
    sink.close()
    os.close(writer)


def test_a_blocking_socket_of_somebody_elses_does_not_block_us():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = FileSink(ours.fileno())
        total = 0
        while taken := sink.write(bytes(100_000)):
            total += taken
        assert total > 0
        assert ours.getblocking()


def test_a_file_takes_everything(tmp_path):
    with open(tmp_path / "log", "wb", buffering=0) as file:
        sink = FileSink(file.fileno())
        assert sink.write(b"a" * 100_000) == 100_000
        assert sink.write(b"b") == 1
        sink.close()
    assert (tmp_path / "log").stat().st_size == 100_001


def test_a_slow_forward_holds_the_log_back():
    reader, writer = os.pipe()
    log = ConsoleLog(forward=FileSink(writer))
    taken = 1
    while taken:
        taken = log.write(b"x" * 5000)
    assert log.write(b"never") == 0
    assert b"never" not in log.tail()
    os.close(reader)
    os.close(writer)


def test_a_socket_is_lossless_until_its_reader_is_gone():
    ours, theirs = socket.socketpair()
    with ours, theirs:
        sink = SocketSink(ours)
        sent = b""
        while True:
            piece = os.urandom(5000)
            taken = sink.write(piece)
            sent += piece[:taken]
            if taken < len(piece):
                break
        got = b""
        while len(got) < len(sent):
            got += theirs.recv(1 << 20)
        assert got == sent
        theirs.close()
        assert sink.write(b"abc") == 3
        assert sink.fileno() == -1
