"""A VM of the software engine: its one CPU, its interrupt lines, and the thread that keeps time for both."""

import os
import threading

import cython
from cython.cimports.kvmkit.accel.tcg.core import FOREVER, PINS, CpuCore
from cython.cimports.kvmkit.accel.tcg.threads import (
    monotonic,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from cython.cimports.kvmkit.memory.ram import written_function
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.posix.time import timespec
from cython.cimports.posix.unistd import read

from kvmkit.accel.state import VM_STATE
from kvmkit.accel.tcg.cpu import TcgCpu
from kvmkit.errors import BadInput, HostError


@cython.cclass
class TcgVm:
    """See VirtualMachine."""

    def __init__(self, memory, ports, mmio, model: str):
        self.cpu = TcgCpu(memory, ports, mmio, model)
        self.memory = memory
        self.memory.ram.engine = cython.cast(cython.p_void, self.cpu)
        self.memory.ram.written = cython.cast(written_function, cpu_written)
        self.fds[0].fd = self.cpu.wake
        self.fds[0].events = POLLIN
        self.count = 1
        self.closing = False
        self.thread = threading.Thread(target=self.keep_time, name="tcg-timer", daemon=True)
        self.thread.start()

    @property
    def engine(self) -> str:
        return "tcg"

    def create_vcpu(self, index: int):
        """The boot processor; there is no other."""
        if index != 0:
            raise BadInput("tcg: one vCPU is all the software engine has")
        return self.cpu

    # Interrupt lines.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def raise_line(self, gsi: cython.int, level: cython.bint) -> cython.void:
        """A line, or the message a route makes of it. Mutex held."""
        if gsi < PINS:
            self.cpu.chips.set_irq(gsi, level)
        elif level and gsi < ROUTES and self.routes[gsi].valid:
            self.cpu.chips.signal_msi(self.routes[gsi].address, self.routes[gsi].data)

    def set_irq(self, gsi: cython.int, level: cython.int) -> None:
        if not 0 <= gsi < ROUTES:
            raise BadInput(f"tcg: there is no interrupt {gsi}")
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.cpu.mutex))
            self.raise_line(gsi, level != 0)
            self.cpu.refresh()
            pthread_mutex_unlock(cython.address(self.cpu.mutex))

    def signal_msi(self, address: uint64_t, data: uint32_t) -> None:
        with cython.nogil:
            pthread_mutex_lock(cython.address(self.cpu.mutex))
            self.cpu.chips.signal_msi(address, data)
            self.cpu.refresh()
            pthread_mutex_unlock(cython.address(self.cpu.mutex))

    def set_msi_routes(self, routes) -> None:
        for route in routes:
            if not PINS <= route.gsi < ROUTES:
                raise BadInput(f"tcg: interrupt {route.gsi} can't stand for a message; {PINS} to {ROUTES - 1} can")
        pthread_mutex_lock(cython.address(self.cpu.mutex))
        for i in range(ROUTES):
            self.routes[i].valid = False
        for route in routes:
            r = cython.address(self.routes[cython.cast(cython.int, route.gsi)])
            r.address, r.data, r.valid = route.address, route.data, True
        pthread_mutex_unlock(cython.address(self.cpu.mutex))

    def irqfd(self, fd: int, gsi: int, resample: int = -1) -> None:
        if not 0 <= gsi < ROUTES or (resample >= 0 and gsi >= PINS):
            raise BadInput(f"tcg: an eventfd can't raise interrupt {gsi}")
        os.set_blocking(fd, False)
        with self.stopped_clock():
            if self.count > LINES:
                raise HostError(f"tcg: more than {LINES} interrupt eventfds")
            self.fds[self.count].fd = fd
            self.fds[self.count].events = POLLIN
            self.gsis[self.count] = gsi
            self.level[self.count] = resample >= 0
            self.count += 1
            if resample >= 0:
                self.cpu.resample[cython.cast(cython.int, gsi)] = resample
                self.resample_lines()

    def remove_irqfd(self, fd: int, gsi: int) -> None:
        with self.stopped_clock():
            for i in range(1, self.count):
                if self.fds[i].fd == fd and self.gsis[i] == gsi:
                    if self.level[i]:
                        self.cpu.resample[cython.cast(cython.int, gsi)] = -1
                        self.resample_lines()
                    self.count -= 1
                    self.fds[i] = self.fds[self.count]
                    self.gsis[i] = self.gsis[self.count]
                    self.level[i] = self.level[self.count]
                    return
        raise FileNotFoundError(2, f"no eventfd {fd} raises interrupt {gsi}")

    def resample_lines(self) -> None:
        """Tell the interrupt controllers which lines fall by themselves at their EOI."""
        lines: uint32_t = 0
        for gsi in range(PINS):
            if self.cpu.resample[gsi] >= 0:
                lines |= 1 << gsi
        self.cpu.chips.set_resample(lines)

    # Doorbells.

    def ioeventfd(self, fd: int, address: int, size: int, *, port: bool = False, match=None) -> None:
        if size not in (0, 1, 2, 4, 8):
            raise BadInput(f"tcg: a doorbell of {size} bytes can't be")
        pthread_mutex_lock(cython.address(self.cpu.mutex))
        try:
            self.cpu.doorbells.add(fd, address, size, port, match)
        finally:
            pthread_mutex_unlock(cython.address(self.cpu.mutex))

    def remove_ioeventfd(self, fd: int, address: int, size: int, *, port: bool = False, match=None) -> None:
        pthread_mutex_lock(cython.address(self.cpu.mutex))
        try:
            self.cpu.doorbells.remove(fd, address, size, port, match)
        finally:
            pthread_mutex_unlock(cython.address(self.cpu.mutex))

    # Time.

    def keep_time(self) -> None:
        """The timer thread: runs timers that fall due while the guest runs, and passes eventfds on as interrupts."""
        with cython.nogil:
            self.serve()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self) -> cython.void:
        span: timespec
        value: uint64_t
        i: cython.int
        while not self.closing:
            pthread_mutex_lock(cython.address(self.cpu.mutex))
            now: int64_t = monotonic()
            self.cpu.chips.poll(now)
            self.cpu.refresh()
            deadline: int64_t = self.cpu.chips.deadline()
            self.cpu.armed = deadline
            count: cython.int = self.count
            pthread_mutex_unlock(cython.address(self.cpu.mutex))
            if deadline == FOREVER:
                ppoll(self.fds, count, cython.NULL, cython.NULL)
            else:
                wait: int64_t = max(deadline - now, 0)
                span.tv_sec = wait // 1000000000
                span.tv_nsec = wait % 1000000000
                ppoll(self.fds, count, cython.address(span), cython.NULL)
            if self.fds[0].revents:
                read(self.fds[0].fd, cython.address(value), 8)
            for i in range(1, count):
                if not self.fds[i].revents:
                    continue
                if read(self.fds[i].fd, cython.address(value), 8) != 8:
                    continue
                pthread_mutex_lock(cython.address(self.cpu.mutex))
                self.raise_line(self.gsis[i], True)
                if not self.level[i]:
                    self.raise_line(self.gsis[i], False)
                self.cpu.refresh()
                pthread_mutex_unlock(cython.address(self.cpu.mutex))

    def stopped_clock(self):
        """A context in which the timer thread does not run, so that its list of eventfds can change."""
        return Stopped(self)

    def stop_clock(self) -> None:
        self.closing = True
        os.eventfd_write(self.cpu.wake, 1)
        self.thread.join()

    def start_clock(self) -> None:
        self.closing = False
        self.thread = threading.Thread(target=self.keep_time, name="tcg-timer", daemon=True)
        self.thread.start()

    # State.

    def get(self, name: str) -> bytes:
        tsc: uint64_t = 0
        now: int64_t = 0
        if name == "clock":
            self.cpu.sample(cython.address(tsc), cython.address(now))
            return self.cpu.clock.get(tsc, now)
        if name not in ("pic_master", "pic_slave", "ioapic", "pit"):
            raise KeyError(name)
        pthread_mutex_lock(cython.address(self.cpu.mutex))
        try:
            return self.cpu.chips.get(name)
        finally:
            pthread_mutex_unlock(cython.address(self.cpu.mutex))

    def set(self, name: str, data: bytes) -> None:
        tsc: uint64_t = 0
        now: int64_t = 0
        if name in VM_STATE and len(data) != VM_STATE[name]:
            raise BadInput(f"tcg: {name} state is {VM_STATE[name]} bytes, not {len(data)}")
        if name == "clock":
            self.cpu.sample(cython.address(tsc), cython.address(now))
            self.cpu.clock.set(data, tsc, now)
            return
        if name not in ("pic_master", "pic_slave", "ioapic", "pit"):
            raise KeyError(name)
        pthread_mutex_lock(cython.address(self.cpu.mutex))
        try:
            self.cpu.chips.set(name, data)
            self.cpu.refresh()
            self.cpu.rearm()
        finally:
            pthread_mutex_unlock(cython.address(self.cpu.mutex))

    def memory_written(self, address: uint64_t, length: uint64_t) -> None:
        with cython.nogil:
            self.cpu.written(address, length)

    def close(self) -> None:
        """End the timer thread. The vCPU must not be running, and no device may write to memory."""
        self.memory.ram.written = cython.NULL
        if not self.closing:
            self.stop_clock()


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def cpu_written(cpu: CpuCore, address: uint64_t, length: uint64_t) -> cython.void:
    """For devices' threads, by `GuestMemory.ram`."""
    cpu.written(address, length)


class Stopped:
    """`with vm.stopped_clock()`: see there."""

    def __init__(self, vm):
        self.vm = vm

    def __enter__(self):
        self.vm.stop_clock()

    def __exit__(self, *_):
        self.vm.start_clock()
