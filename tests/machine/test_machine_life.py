"""Machines that start, pause, reset and end: every way to end, with what is left behind."""

from __future__ import annotations

import gc
import os
import select
import threading
import time
import weakref

import pytest
from guests import ECHO, END, FLOOD, build

from kvmkit.errors import BadInput, HostError, KvmkitError
from kvmkit.machine import EndReason, Machine, MachineSpec, State

MIB = 1 << 20
HELLO = 'say 0x3f8, "hello\\n"; '


def run(machine):
    machine.start()
    end = machine.wait(30)
    assert end is not None, machine.console.text()
    assert machine.state is State.ENDED
    return end


def until(condition, seconds=20.0):
    deadline = time.monotonic() + seconds
    while not condition():
        assert time.monotonic() < deadline, "it did not come to that"
        time.sleep(0.01)


@pytest.mark.parametrize(
    ("way", "reason", "status"),
    [
        ("debug exit", EndReason.DEBUG_EXIT, 0x21),
        ("power off", EndReason.POWEROFF, 0),
        ("reset", EndReason.RESET, 0),
        ("reset port", EndReason.RESET, 0),
        ("triple fault", EndReason.SHUTDOWN, 0),
    ],
)
def test_each_way_to_end_is_told_apart(make, way, reason, status):
    machine = make(HELLO + END[way])
    end = run(machine)
    assert (end.reason, end.status) == (reason, status), end.report
    assert machine.console.tail() == b"hello\n"


def test_a_triple_fault_comes_with_a_report(make):
    end = run(make(END["triple fault"]))
    assert not end.wanted
    assert "\n" not in end.detail
    assert "rax 0000000012345678" in end.report
    assert "code" in end.report


def test_a_triple_fault_can_be_a_reset(make):
    end = run(make(END["triple fault"], triple_fault="reset"))
    assert end.reason is EndReason.RESET


@pytest.mark.parametrize("way", ["spin", "sleep"])
def test_a_guest_that_never_ends_is_stopped(make, way):
    machine = make(HELLO + END[way])
    machine.start()
    until(lambda: machine.console.total)
    machine.stop("enough")
    end = machine.wait(30)
    assert end is not None
    assert (end.reason, end.detail) == (EndReason.STOPPED, "enough")


@pytest.mark.parametrize("way", ["spin", "sleep"])
def test_a_guest_that_never_ends_meets_its_timeout(make, way):
    machine = make(END[way], timeout=0.3)
    assert run(machine).reason is EndReason.TIMEOUT


def test_closing_ends_a_running_machine(make):
    machine = make(END["spin"])
    machine.start()
    machine.close()
    assert machine.state is State.ENDED
    machine.close()


def test_a_machine_that_was_never_started_can_be_stopped_and_closed(make):
    machine = make(END["spin"])
    machine.stop()
    end = machine.wait(5)
    assert end is not None
    assert end.reason is EndReason.STOPPED
    with pytest.raises(KvmkitError, match="can't be started"):
        machine.start()


def test_a_second_start_is_refused(make):
    machine = make(END["spin"])
    machine.start()
    with pytest.raises(KvmkitError, match="running"):
        machine.start()


def test_the_first_reason_counts(make):
    machine = make(END["spin"])
    machine.start()
    machine.stop("first")
    machine.stop("second")
    end = machine.wait(30)
    assert end is not None
    assert end.detail == "first"


def test_who_waits_by_descriptor_is_told(make):
    machine = make(END["debug exit"])
    poll = select.poll()
    poll.register(machine.ended_fd, select.POLLIN)
    assert poll.poll(0) == []
    machine.start()
    assert poll.poll(30_000)
    assert machine.wait(5) is not None


def test_many_threads_may_wait_and_stop(make):
    machine = make(END["spin"])
    machine.start()
    ends = []
    threads = [threading.Thread(target=lambda: ends.append(machine.wait(30))) for _ in range(4)]
    threads += [threading.Thread(target=machine.stop) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert {end.reason for end in ends} == {EndReason.STOPPED}


def test_paused_nothing_moves_and_resumed_it_goes_on(make):
    machine = make(FLOOD)
    machine.start()
    until(lambda: machine.console.total > 1000)
    machine.pause()
    assert machine.state is State.PAUSED
    machine.pause()
    before = machine.board.console.transmitted
    time.sleep(0.1)
    assert machine.board.console.transmitted == before
    machine.resume()
    assert machine.state is State.RUNNING
    until(lambda: machine.board.console.transmitted > before)


@pytest.mark.parametrize("way", ["spin", "sleep"])
def test_a_paused_machine_can_be_stopped(make, way):
    machine = make(END[way])
    machine.start()
    machine.pause()
    machine.stop()
    end = machine.wait(30)
    assert end is not None
    with pytest.raises(KvmkitError, match="ended"):
        machine.resume()
    with pytest.raises(KvmkitError, match="ended"):
        machine.pause()


def test_pausing_over_and_over_loses_nothing(make):
    machine = make(ECHO)
    machine.start()
    sent = bytes(i % 256 for i in range(2000))
    os.write(machine.agent_fd, sent)
    got = b""
    while len(got) < len(sent):
        machine.pause()
        machine.resume()
        if select.select([machine.agent_fd], [], [], 0.001)[0]:
            got += os.read(machine.agent_fd, 65536)
    assert got == sent


def test_with_reboot_a_reset_starts_the_kernel_again(make):
    machine = make(HELLO + END["reset"], reboot=True)
    machine.start()
    until(lambda: machine.console.total >= 3 * 6)
    machine.stop()
    end = machine.wait(30)
    assert end is not None
    assert end.reason is EndReason.STOPPED
    assert machine.console.tail().startswith(b"hello\n" * 3)


def test_a_reset_gives_the_guests_memory_back_before_there_is_more_of_it(make):
    """Whenever Python looks for garbage: a guest that starts again and again must not cost its RAM each time."""
    machine = make(HELLO + ECHO, reboot=True, transport="pci", rng=True)
    before = weakref.ref(machine.board.pci)
    gc.disable()
    try:
        machine.start()
        machine.reset()
        until(lambda: machine.boots == 2)
        assert before() is None
    finally:
        gc.enable()


def test_the_reset_button(make):
    machine = make(END["sleep"])
    machine.start()
    machine.reset()
    end = machine.wait(30)
    assert end is not None
    assert end.reason is EndReason.RESET


def test_the_power_button_reaches_the_guest(make):
    """The guest enables the button's event and polls its status bit."""
    text = """
        mov dx, 0x602; mov ax, 0x100; out dx, ax
        say 0x3f8, "ready\\n"
        mov dx, 0x600
    7:  in ax, dx; test ax, 0x100; jz 7b
    """
    machine = make(text + END["power off"])
    machine.start()
    until(lambda: machine.console.total)
    machine.press_power_button()
    end = machine.wait(30)
    assert end is not None
    assert end.reason is EndReason.POWEROFF
    with pytest.raises(KvmkitError, match="power button"):
        machine.press_power_button()


def test_the_agents_channel_loses_nothing_either_way(make):
    machine = make(ECHO)
    machine.start()
    size = 30_000 if machine.spec.accel == "tcg" else 2000
    sent = os.urandom(size)
    offset = 0
    got = b""
    while len(got) < size:
        ready = select.select([machine.agent_fd], [machine.agent_fd] if offset < size else [], [], 30)
        assert ready[0] or ready[1], f"{len(got)} of {size} came back"
        if ready[1]:
            offset += os.write(machine.agent_fd, sent[offset : offset + 5000])
        if ready[0]:
            got += os.read(machine.agent_fd, 65536)
    assert got == sent


def test_an_agent_that_is_not_read_stops_its_guest_and_nothing_else(make):
    machine = make(ECHO)
    machine.start()
    os.set_blocking(machine.agent_fd, False)
    quiet = 0
    while quiet < 5:
        try:
            os.write(machine.agent_fd, bytes(4096))
            quiet = 0
        except BlockingIOError:
            quiet += 1
            time.sleep(0.05)
    assert machine.state is State.RUNNING
    machine.stop()
    assert machine.wait(30) is not None


def test_a_flood_on_the_console_takes_no_memory_and_hangs_nothing(make):
    machine = make(FLOOD)
    machine.start()
    until(lambda: machine.console.total > 20 * machine.console.keep or machine.spec.accel == "kvm")
    assert len(machine.console._pieces) < 4 * machine.console.keep
    machine.stop()
    assert machine.wait(30) is not None


def test_an_attached_console_that_nobody_reads_can_be_stopped(make):
    reader, writer = os.pipe()
    try:
        machine = make(FLOOD, console="attach", console_out=writer)
        machine.start()
        until(lambda: machine.console.total >= 4096)
        machine.stop()
        assert machine.wait(30) is not None
    finally:
        os.close(reader)
        os.close(writer)


def test_an_attached_console_passes_bytes_both_ways(make):
    reader, out = os.pipe()
    source, writer = os.pipe()
    try:
        text = """
            mov dx, 0x3fd
        7:  in al, dx; test al, 1; jz 7b
            mov dx, 0x3f8; in al, dx; add al, 1; out dx, al
        """
        machine = make(text + END["debug exit"], console="attach", console_in=source, console_out=out)
        machine.start()
        os.write(writer, b"A")
        assert os.read(reader, 10) == b"B"
        assert machine.wait(30) is not None
    finally:
        for fd in (reader, out, source, writer):
            os.close(fd)


def test_debug_console_is_kept_apart(make):
    machine = make('say 0xe9, "one"; say 0x402, " two"; ' + END["debug exit"])
    run(machine)
    assert machine.debug.tail() == b"one two"
    assert machine.console.total == 0


def test_without_the_option_port_f4_does_nothing(make):
    machine = make(HELLO + "mov al, 0; out 0xf4, al; " + END["power off"], debug_exit=False)
    assert run(machine).reason is EndReason.POWEROFF


def test_statistics_have_their_moments_in_order(make):
    machine = make(HELLO + END["debug exit"])
    run(machine)
    report = machine.report()
    assert report.accel == machine.spec.accel
    assert report.first_instruction_ms is not None
    assert report.kernel_first_line_ms is not None
    assert 0 < report.first_instruction_ms < report.kernel_first_line_ms
    assert report.user_space_ms is None
    assert report.exits["port"] >= 7
    assert report.peak_rss_bytes > MIB


def test_nothing_stays_open(make, descriptors):
    make(END["debug exit"]).close()  # whatever opens once
    before = descriptors()
    for _ in range(5):
        machine = make(END["debug exit"])
        run(machine)
        machine.close()
    del machine
    assert descriptors() <= before


def test_a_device_that_fails_ends_the_machine_with_a_report(make):
    machine = make(HELLO + END["sleep"])

    def broken(data: bytes) -> int:
        raise RuntimeError("a mistake of ours")

    machine.console.write = broken  # type: ignore[method-assign]  # the real one does not fail
    end = run(machine)
    assert end.reason is EndReason.FAULT
    assert "a mistake of ours" in end.detail
    assert "Traceback" in end.report


@pytest.mark.parametrize("cpus", [2, 4])
def test_several_vcpus_end_together(make, engine, cpus):
    if engine == "tcg":
        pytest.skip("the software engine has one vCPU")
    machine = make(HELLO + END["debug exit"], cpus=cpus)
    assert run(machine).reason is EndReason.DEBUG_EXIT
    machine = make(HELLO + END["sleep"], cpus=cpus)
    machine.start()
    machine.pause()
    machine.resume()
    machine.stop()
    assert machine.wait(30) is not None


# What is refused before anything starts


@pytest.mark.parametrize(
    ("options", "why"),
    [
        ({"accel": "hax"}, "--accel hax"),
        ({"accel": "tcg", "cpu": "pentium9"}, "--cpu pentium9"),
        ({"accel": "tcg", "cpus": 2}, "--cpus 2"),
        ({"memory": 1 << 50}, "more than the"),
    ],
)
def test_a_bad_spec_is_refused_in_one_line_and_leaves_nothing(tmp_path, descriptors, options, why):
    kernel = build(tmp_path, END["spin"])
    before, threads = descriptors(), threading.active_count()
    with pytest.raises((BadInput, HostError), match=why) as error:
        Machine(MachineSpec(kernel=kernel, **{"accel": "tcg", "memory": 16 * MIB, **options}))
    assert "\n" not in str(error.value)
    del error
    assert descriptors() <= before
    assert threading.active_count() == threads


def test_a_kernel_that_is_none_is_refused_and_leaves_nothing(tmp_path, descriptors):
    (tmp_path / "noise").write_bytes(os.urandom(100_000))
    before, threads = descriptors(), threading.active_count()
    for name in ("noise", "missing"):
        with pytest.raises(BadInput, match=name):
            Machine(MachineSpec(kernel=str(tmp_path / name), accel="tcg", memory=16 * MIB))
    assert descriptors() <= before
    assert threading.active_count() == threads
