"""A lane: the thread that works on one queue of a device, or on a few of them, without the GIL.

It serves chains while there are any, then looks for more for a short time (the driver need not ring, nor we be
woken), and only then asks for the doorbell and sleeps. How long it looks adapts: longer when work came soon after it
fell asleep, shorter when it did not, and not at all for a while where looking kept the driver from its processor.
"""

import os
import threading

import cython
from cython.cimports.kvmkit.accel.tcg.threads import (
    monotonic,
    pthread_cond_destroy,
    pthread_cond_init,
    pthread_cond_signal,
    pthread_cond_wait,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from cython.cimports.kvmkit.virtio.queue import Queue, queue_end, queue_has, queue_signal, queue_start
from cython.cimports.kvmkit.virtio.ring import ACQUIRE, RELEASE, VirtQueue, load32, store32
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.posix.time import timespec
from cython.cimports.posix.unistd import read, write

from kvmkit.errors import BadInput

STACK_BYTES: int = 1 << 18


@cython.cclass
class Served:
    """What a lane asks of its device; see VirtioDevice, where a device's author finds what each is for."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, lane: Lane) -> cython.bint:
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        q.wanted = False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush(self, lane: Lane) -> cython.void:
        pass

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self, lane: Lane) -> cython.void:
        pass

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def broke(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        pass


@cython.cclass
class Lane:
    """Made held; `run`, `hold` and `close` are for one thread at a time, which is not the lane's own."""

    def __cinit__(self, index: int, server: Served, queues: list, name: str):
        if not 0 < len(queues) <= LANE_QUEUES:
            raise BadInput(f"{name}: a lane of {len(queues)} queues")
        pthread_mutex_init(cython.address(self.mutex), cython.NULL)
        pthread_cond_init(cython.address(self.changed), cython.NULL)
        self.index = index
        self.server = server
        self.owned = queues
        self.count = len(queues)
        self.wanted = self.state = LANE_HOLD
        # With one processor, looking takes the time that whoever would give us work needs.
        self.most_spin = SPIN_MOST_NS if len(os.sched_getaffinity(0)) > 1 else 0
        i: cython.int
        for i in range(1 + LANE_WATCHES):
            self.fds[i].fd = -1  # poll passes it over
        self.wake = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.fds[0].fd = self.wake
        self.fds[0].events = POLLIN
        for i in range(self.count):
            queue: Queue = queues[i]
            self.queues[i] = cython.address(queue.q)
            self.fds[1 + LANE_WATCHES + i].fd = queue.q.doorbell
            self.fds[1 + LANE_WATCHES + i].events = POLLIN
        self.thread = threading.Thread(target=self._main, name=name, daemon=True)

    def __dealloc__(self):
        if self.wake >= 0:
            os.close(self.wake)
        pthread_mutex_destroy(cython.address(self.mutex))
        pthread_cond_destroy(cython.address(self.changed))

    # For the device, with the GIL.

    def run(self) -> None:
        """Begin, or go on."""
        if self.thread.ident is None:
            before = threading.stack_size(STACK_BYTES)
            try:
                self.thread.start()
            finally:
                threading.stack_size(before)
        with cython.nogil:
            self.order(LANE_RUN)

    def hold(self) -> None:
        """Come back when it does nothing: no chain is with it, and it won't touch guest memory until `run`."""
        if self.thread.ident is None:
            return
        with cython.nogil:
            self.order(LANE_HOLD)
            pthread_mutex_lock(cython.address(self.mutex))
            while self.state == LANE_RUN:
                pthread_cond_wait(cython.address(self.changed), cython.address(self.mutex))
            pthread_mutex_unlock(cython.address(self.mutex))

    def close(self) -> None:
        """End the thread."""
        if self.thread.ident is not None:
            with cython.nogil:
                self.order(LANE_END)
            self.thread.join()
        if self.wake >= 0:
            os.close(self.wake)
            self.wake = -1

    def turn(self) -> bool:
        """A round on the caller's thread, to the end of what it began: for tests of a device that was held before its
        first `run`, whose steps are then the same each time. Whether there was anything to do."""
        with cython.nogil:
            self.fresh = True
            worked: cython.bint = self.round()
            self.server.drain(self)
            self.end_round()
        return worked

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def order(self, wanted: uint32_t) -> cython.void:
        one: uint64_t = 1
        pthread_mutex_lock(cython.address(self.mutex))
        store32(cython.address(self.wanted), wanted, RELEASE)
        if wanted == LANE_RUN:
            self.state = LANE_RUN  # from now on `hold` has to wait for it
        pthread_cond_signal(cython.address(self.changed))
        pthread_mutex_unlock(cython.address(self.mutex))
        write(self.wake, cython.address(one), 8)

    # For the device, on the lane's thread.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def watch(self, slot: cython.int, fd: cython.int, events: cython.short) -> cython.void:
        """Have `look` called when `fd` is ready for `events`; fd -1: no more. Also while the lane is held."""
        self.fds[1 + slot].fd = fd
        self.fds[1 + slot].events = events
        self.fds[1 + slot].revents = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def fired(self, slot: cython.int) -> cython.short:
        """What the last sleep found that slot's descriptor ready for; once."""
        events: cython.short = self.fds[1 + slot].revents
        self.fds[1 + slot].revents = 0
        return events

    # The thread.

    def _main(self) -> None:
        with cython.nogil:
            self.serve_rounds()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve_rounds(self) -> cython.void:
        idle_since: int64_t = 0
        while True:
            if load32(cython.address(self.wanted), ACQUIRE) != LANE_RUN:
                if not self.rest():
                    return
                idle_since = 0
            if self.round():
                if idle_since:
                    self.distrust //= 2
                    idle_since = 0
                continue
            if self.spin and not self.patient:
                now: int64_t = monotonic()
                if idle_since == 0:
                    idle_since = now
                if now - idle_since < self.spin:
                    cpu_pause()
                    continue
                self.spun_dry = self.spin == self.most_spin
            idle_since = 0
            if not self.end_round():
                self.sleep()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def rest(self) -> cython.bint:
        """Give back what is in flight and wait. False: it is over."""
        i: cython.int
        self.server.drain(self)
        for i in range(self.count):
            queue_signal(self.queues[i])
        pthread_mutex_lock(cython.address(self.mutex))
        while self.wanted == LANE_HOLD:
            self.state = LANE_HOLD
            pthread_cond_signal(cython.address(self.changed))
            pthread_cond_wait(cython.address(self.changed), cython.address(self.mutex))
        going: cython.bint = self.wanted == LANE_RUN
        pthread_mutex_unlock(cython.address(self.mutex))
        self.due = 0
        self.fresh = True
        for i in range(self.count):
            self.quiet[i] = False
            self.told[i] = False
        return going

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def round(self) -> cython.bint:
        """Do what there is to do. False: there was nothing."""
        self.rounds += 1
        worked: cython.bint = self.server.look(self)
        if self.due and monotonic() >= self.due:
            self.due = 0
            self.fresh = True
        fresh: cython.bint = self.fresh
        self.fresh = False
        i: cython.int
        for i in range(self.count):
            q: cython.pointer(VirtQueue) = self.queues[i]
            if fresh:
                q.wanted = True
            if q.ready and q.wanted and queue_has(q):
                if not self.quiet[i]:
                    queue_start(q)
                    self.quiet[i] = True
                self.server.serve(self, q)
                worked = True
            if q.broken != cython.NULL and not self.told[i]:
                self.told[i] = True
                self.server.broke(self, q)
        self.server.flush(self)
        for i in range(self.count):
            queue_signal(self.queues[i])
        return worked

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def end_round(self) -> cython.bint:
        """Have the driver ring again. True: it has something already."""
        more: cython.bint = False
        i: cython.int
        for i in range(self.count):
            self.quiet[i] = False
            if queue_end(self.queues[i]):
                more = True
        return more

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def adapt(self, slept: int64_t) -> cython.void:
        """Choose how long to look for more before the next sleep."""
        dry: cython.bint = self.spun_dry
        self.spun_dry = False
        if slept >= self.most_spin:
            self.spin = self.spin // 2 if self.spin > SPIN_FIRST_NS else 0
        elif dry:
            # Nothing while we looked, and something as soon as we slept: the driver waits for our processor.
            self.distrust = min(2 * self.distrust + 16, MOST_DISTRUST)
            self.trust_in = self.distrust
            self.spin = 0
        elif self.trust_in:
            self.trust_in -= 1
        else:
            self.spin = min(self.most_spin, max(2 * self.spin, SPIN_FIRST_NS))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def sleep(self) -> cython.void:
        span: timespec
        limit: cython.p_const_void = cython.NULL
        value: uint64_t
        i: cython.int
        before: int64_t = monotonic()
        if self.due:
            left: int64_t = max(self.due - before, 0)
            span.tv_sec = left // 1000000000
            span.tv_nsec = left % 1000000000
            limit = cython.address(span)
        self.sleeps += 1
        ppoll(self.fds, 1 + LANE_WATCHES + self.count, limit, cython.NULL)
        self.adapt(monotonic() - before)
        if self.fds[0].revents:
            read(self.wake, cython.address(value), 8)
        for i in range(self.count):
            if self.fds[1 + LANE_WATCHES + i].revents:
                read(self.queues[i].doorbell, cython.address(value), 8)
                self.queues[i].wanted = True
