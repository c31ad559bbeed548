"""Kicks: none is lost, none sticks, and the guest goes on from where it was."""

from __future__ import annotations

import signal
import threading
import time

import pytest

from kvmkit.accel import ExitReason
from kvmkit.errors import KvmkitError

SPIN = "1: inc ebx\njmp 1b\n"


def test_kick_before_run_is_not_lost(guest):
    machine = guest(SPIN, "ring3")
    machine.vcpu.kick()
    assert machine.vcpu.run().reason == ExitReason.KICKED


def test_kicks_before_run_count_once(guest):
    machine = guest("mov ecx, 5\nshow ecx\nfinish", "ring3")
    machine.vcpu.kick()
    machine.vcpu.kick()
    assert machine.vcpu.run().reason == ExitReason.KICKED
    machine.finish()
    assert machine.shown == [5]


@pytest.mark.parametrize("mode", ["ring3", "long"])
def test_a_spinning_vcpu_comes_back_from_each_of_1000_kicks(guest, mode):
    machine = guest(SPIN, mode)
    back = 0
    stop = threading.Event()
    returned = threading.Semaphore(0)

    def run():
        nonlocal back
        while not stop.is_set():
            assert machine.vcpu.run().reason == ExitReason.KICKED
            back += 1
            returned.release()

    thread = threading.Thread(target=run)
    thread.start()
    for i in range(1000):
        if i % 10 == 0:
            time.sleep(0.0005)  # now and then well inside the guest, else close around its entry
        machine.vcpu.kick()
        assert returned.acquire(timeout=20)
    stop.set()
    machine.vcpu.kick()
    thread.join(20)
    assert not thread.is_alive()
    assert back >= 1000
    assert machine.regs().rbx > 0


def test_kicks_from_many_threads_at_once(guest):
    machine = guest(SPIN, "ring3")
    stop = threading.Event()

    def kick():
        while not stop.is_set():
            machine.vcpu.kick()
            time.sleep(0.001)

    threads = [threading.Thread(target=kick) for _ in range(4)]
    for thread in threads:
        thread.start()
    for _ in range(100):
        assert machine.vcpu.run().reason == ExitReason.KICKED
    stop.set()
    for thread in threads:
        thread.join()


def test_kick_ends_a_halt_that_nothing_else_would(guest):
    machine = guest("cli\n1: hlt\njmp 1b\n", "long")
    timer = threading.Timer(0.05, machine.vcpu.kick)
    timer.start()
    assert machine.vcpu.run().reason == ExitReason.KICKED


def test_kick_from_a_device_ends_run_after_the_access(guest):
    """The access is complete by then: the value read stands in its register."""
    from microguest import Recorder

    machine = guest("mov dx, 0x620\nin eax, dx\nmov ebx, eax\n1: jmp 1b\n", "ring3")

    class Kicker(Recorder):
        def read(self, offset, size):
            machine.vcpu.kick()
            return 0x1234567

    machine.ports.add(0x620, 4, Kicker())
    assert machine.vcpu.run().reason == ExitReason.KICKED
    assert machine.regs().rax == 0x1234567
    assert machine.regs().rip >= machine.symbols["_start"] + 5


def test_counting_is_exact_over_kicks(guest):
    """Kicks may come anywhere: no instruction runs twice, none is left out."""
    code = "mov ecx, 20000\n1: in al, 0x80\ninc ebx\ndec ecx\njnz 1b\nshow ebx\nfinish"
    machine = guest(code, "ring3")
    stop = threading.Event()

    def kick():
        while not stop.is_set():
            machine.vcpu.kick()
            time.sleep(0.0003)

    thread = threading.Thread(target=kick)
    thread.start()
    try:
        while not machine.finished.is_set():
            assert machine.vcpu.run().reason == ExitReason.KICKED
    finally:
        stop.set()
        thread.join()
    assert machine.shown == [20000]
    assert machine.ports.unclaimed == 20000


def test_a_python_signal_handler_runs_and_its_exception_ends_run(guest, only_kvm):
    """Ctrl-C while a vCPU runs in the main thread."""
    machine = guest(SPIN, "ring3")

    def handler(number, frame):
        raise KeyboardInterrupt

    before = signal.signal(signal.SIGALRM, handler)
    try:
        signal.setitimer(signal.ITIMER_REAL, 0.05)
        with pytest.raises(KeyboardInterrupt):
            machine.vcpu.run()
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
    machine.vcpu.kick()
    assert machine.vcpu.run().reason == ExitReason.KICKED


def test_a_thread_that_blocks_every_signal_is_kicked_all_the_same(guest):
    machine = guest(SPIN, "ring3")
    timer = threading.Timer(0.05, machine.vcpu.kick)
    timer.start()
    before = signal.pthread_sigmask(signal.SIG_BLOCK, signal.valid_signals())
    try:
        assert machine.vcpu.run().reason == ExitReason.KICKED
    finally:
        signal.pthread_sigmask(signal.SIG_SETMASK, before)


def test_one_vcpu_runs_in_one_thread(guest, only_kvm):
    machine = guest(SPIN, "ring3")
    thread = threading.Thread(target=machine.vcpu.run)
    thread.start()
    time.sleep(0.05)
    try:
        with pytest.raises(KvmkitError):
            machine.vcpu.run()
    finally:
        machine.vcpu.kick()
        thread.join()
