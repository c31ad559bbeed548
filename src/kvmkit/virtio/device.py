"""A virtio device, which knows nothing of its transport. Source: virtio 1.2, 2.1 to 2.6 and 3.1.

A device in Python overrides `handle` and perhaps `config_written`, `accepts` and `stopped`. A compiled one derives in
a .pxd and overrides, all without the GIL and on a lane's thread:

    serve(lane, q)   take chains from `q` (queue_get), do them or begin them, give them back (queue_release). When it
                     can't take what is there, it sets q.wanted = False, or it is called again at once.
    look(lane)       do what the backend has ready; True: there was something. Called often: it must be cheap.
    flush(lane)      after a round: submit what `serve` gathered.
    drain(lane)      finish or drop all that is in flight, and give the chains back: the driver resets, or we pause.

Interrupts, doorbells and what a malformed chain leads to are no business of theirs.
"""

import os
import threading

import cython
from cython.cimports.kvmkit.accel.tcg.threads import monotonic
from cython.cimports.kvmkit.memory.ram import GuestMemory
from cython.cimports.kvmkit.virtio.lane import Lane
from cython.cimports.kvmkit.virtio.limit import limit_set, limit_wait
from cython.cimports.kvmkit.virtio.queue import Queue
from cython.cimports.kvmkit.virtio.ring import SEQ_CST, VirtQueue, fetch_and32, fetch_or32, load32
from cython.cimports.libc.stdint import int64_t, uint32_t, uint64_t
from cython.cimports.posix.unistd import write

from kvmkit.errors import BadInput
from kvmkit.virtio.features import RING, VERSION_1

# Device status, 2.1.
ACKNOWLEDGE: int = 1
DRIVER: int = 2
DRIVER_OK: int = 4
FEATURES_OK: int = 8
NEEDS_RESET: int = 64
FAILED: int = 128

# Why it interrupts: the bits of mmio's InterruptStatus and of pci's ISR.
QUEUE_INTERRUPT: int = 1
CONFIG_INTERRUPT: int = 2


@cython.cclass
class VirtioDevice(Served):
    """`kind` is its device ID (5), `queues` the size offered for each queue, `features` its own feature bits.

    `driver` says what the guest's kernel needs for it. `lanes` are lists of queue numbers, one thread for each list;
    by default each queue has its own. `log` is told in a line what the guest did wrong.
    """

    def __init__(
        self,
        memory: GuestMemory,
        kind: int,
        queues: list,
        *,
        name: str,
        driver: str = "",
        features: int = 0,
        config: bytes = b"",
        lanes: list | None = None,
        log=None,
    ):
        self.memory = memory
        self.kind = kind
        self.name = name
        self.driver = driver
        self.features = features | RING
        self.config = bytes(config)
        self.log = log
        self.failure = ""
        self.held = False
        self.lock = threading.RLock()
        self.config_interrupt = -1
        self.queues = []
        self.lanes = []
        for index, most in enumerate(queues):
            queue = Queue(memory, index, most)
            queue.wire(os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC), -1)
            self.queues.append(queue)
        self.lane_of = [None] * len(queues)
        for number, members in enumerate([[i] for i in range(len(queues))] if lanes is None else lanes):
            lane = Lane(number, self, [self.queues[i] for i in members], name if number == 0 else f"{name}.{number}")
            self.lanes.append(lane)
            for i in members:
                self.lane_of[i] = lane

    def close(self) -> None:
        """End its threads. The doorbells must be off the bus."""
        with self.lock:
            if self.closed:
                return
            self.closed = True
            for lane in self.lanes:
                lane.close()
            self.status = 0
            self.stopped()
            for queue in self.queues:
                queue.disable()
                os.close(queue.doorbell)

    # What a device overrides.

    def handle(self, queue: Queue) -> None:
        """Serve `queue` (get, release), on a lane's thread and with the GIL. It may not call anything that waits."""
        while queue.get() is not None:
            queue.release()

    def accepts(self, features: int) -> bool:
        """Whether it works with these features of those it offers."""
        return True

    def config_written(self, offset: int, size: int, value: int) -> None:
        """The driver wrote to the configuration space; lanes may be running."""

    def stopped(self) -> None:
        """The driver reset it, or it is closed: no lane runs. Backends forget what the driver had set."""

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        with cython.gil:
            try:
                self.handle(self.queues[q.index])
            except Exception as error:
                q.ready = False
                self.needs_reset(f"queue {q.index}: {type(error).__name__}: {error}")

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def broke(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        with cython.gil:
            queue: Queue = self.queues[q.index]
            self.needs_reset(f"queue {q.index}: {queue.broken}")

    # For devices.

    def set_config(self, config: bytes, *, interrupt: bool = True) -> None:
        """Replace the configuration space, and tell the driver."""
        if len(config) != len(self.config):
            raise ValueError("a configuration space does not change its size")
        if config == self.config:
            return
        self.config = bytes(config)
        self.generation += 1
        if interrupt and self.status & DRIVER_OK:
            self.interrupt_config()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def interrupt_config(self) -> cython.void:
        one: uint64_t = 1
        fetch_or32(cython.address(self.interrupts_pending), 2, SEQ_CST)
        if self.config_interrupt >= 0:
            write(self.config_interrupt, cython.address(one), 8)

    def set_limit(
        self, *, bytes: float = 0, operations: float = 0, byte_burst: float = 0, operation_burst: float = 0
    ) -> None:
        """Let requests through at these rates a second on average, 0 for no limit; also while it works.

        Bursts are what may come at once after a time of rest; 0: what one tenth of a second brings. For devices that
        ask `may_begin`; BadInput for numbers that can't be.
        """
        if not all(0 <= number < 1e18 for number in (bytes, operations, byte_burst, operation_burst)):
            raise BadInput(f"{self.name}: a rate limit is a number from 0 to 1e18")
        self.apply_limit(bytes, byte_burst or bytes / 10, operations, operation_burst or operations / 10)
        with self.lock:  # who waits by the old rates looks again
            for lane in self.lanes:
                lane.hold()
            self._go_on()

    def apply_limit(self, bytes: float, byte_burst: float, operations: float, operation_burst: float) -> None:
        limit_set(cython.address(self.limit), bytes, byte_burst, operations, operation_burst)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def may_begin(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.bint:
        """Whether the rate limit lets another request begin. False: `serve` is called again when it does."""
        wait: int64_t = limit_wait(cython.address(self.limit))
        if wait == 0:
            return True
        q.wanted = False
        due: int64_t = monotonic() + wait
        if lane.due == 0 or due < lane.due:
            lane.due = due
        return False

    def needs_reset(self, why: str) -> None:
        """Only a reset by the driver brings the device back. Logged once; any thread may call it."""
        if self.status & NEEDS_RESET:
            return
        self.failure = why
        self.status |= NEEDS_RESET
        if self.status & DRIVER_OK:
            self.interrupt_config()
        if self.log is not None:
            try:
                self.log(f"{self.name}: the guest's driver must reset this device: {why}")
            except Exception:
                pass

    # For transports, on a vCPU's thread.

    def wire_config(self, interrupt: int) -> None:
        """The eventfd that interrupts the driver when the configuration has changed; -1: none."""
        self.config_interrupt = interrupt

    @property
    def interrupt_address(self) -> int:
        """Where queues set bit 0 and the configuration bit 1: for `Queue.wire`."""
        return cython.cast(cython.size_t, cython.address(self.interrupts_pending))

    @property
    def interrupt_status(self) -> int:
        return load32(cython.address(self.interrupts_pending), SEQ_CST)

    def acknowledge(self, bits: uint32_t) -> int:
        """Take bits of `interrupt_status` back; what it was before."""
        return fetch_and32(cython.address(self.interrupts_pending), ~bits, SEQ_CST)

    def read_config(self, offset: int, size: int) -> int:
        """`size` bytes at `offset`; zeros behind the end."""
        return int.from_bytes(self.config[offset : offset + size], "little")

    def write_config(self, offset: int, size: int, value: int) -> None:
        if offset + size <= len(self.config) and not self.status & NEEDS_RESET:
            with self.lock:
                self.config_written(offset, size, value)

    def accept(self, features: uint64_t) -> None:
        """The driver's choice, before it sets FEATURES_OK; after that it does not count any more."""
        if not self.status & FEATURES_OK:
            self.accepted = features

    def write_status(self, value: int) -> None:
        """The driver's write to the device status; 0 resets. Comes back when the device has stopped."""
        with self.lock:
            if self.closed:
                return
            if value == 0:
                self._reset()
                return
            # Bits are only taken back by a reset (2.1.1), and NEEDS_RESET is ours.
            new = value & 0xBF & ~self.status
            if new & FEATURES_OK and not self._features_fit():
                new &= ~(FEATURES_OK | DRIVER_OK)
            if new & DRIVER_OK and not (self.status | new) & FEATURES_OK:
                new &= ~DRIVER_OK
            self.status |= new
            if new & DRIVER_OK:
                self.driven = True
                if self.status & NEEDS_RESET:
                    self.interrupt_config()
                self._go_on()

    def _features_fit(self) -> bool:
        # Only modern drivers: a legacy one would take rings and header for others than they are.
        if self.accepted & ~self.features or not self.accepted & VERSION_1:
            return False
        return bool(self.accepts(self.accepted))

    def _reset(self) -> None:
        for lane in self.lanes:
            lane.hold()
        self.status = 0
        self.failure = ""
        self.accepted = 0
        for queue in self.queues:
            queue.disable()
        self.acknowledge(0xFFFFFFFF)
        self.stopped()

    def _go_on(self) -> None:
        if self.status & DRIVER_OK and not self.held and not self.closed:
            for lane in self.lanes:
                lane.run()

    def enable_queue(self, index: int, size: int, descriptors: int, driver: int, device: int) -> bool:
        """The driver's rings for a queue. False: they can't be, and the device needs a reset."""
        with self.lock:
            queue: Queue = self.queues[index]
            if queue.ready or not self.status & FEATURES_OK:
                return bool(queue.ready)
            lane = self.lane_of[index]
            if lane is not None:
                lane.hold()
            good = queue.enable(size, descriptors, driver, device, self.accepted)
            if not good:
                self.needs_reset(f"queue {index}: {queue.failure}")
            self._go_on()
            return bool(good)

    def reset_queue(self, index: int) -> None:
        """The driver takes a queue back (2.6.1): when this comes back, nothing of it is in use."""
        with self.lock:
            lane = self.lane_of[index]
            if lane is not None:
                lane.hold()
            self.queues[index].disable()
            self._go_on()

    # For the machine.

    def hold(self) -> None:
        """Come back when nothing is in flight; the driver may go on to write registers, but nothing is served."""
        with self.lock:
            self.held = True
            for lane in self.lanes:
                lane.hold()

    def release(self) -> None:
        """Go on after `hold`."""
        with self.lock:
            self.held = False
            self._go_on()

    @property
    def driver_ok(self) -> bool:
        """A driver works with it."""
        return bool(self.status & DRIVER_OK)

    def state(self) -> dict:
        """All that the driver has set, while it is held."""
        return {
            "kind": self.kind,
            "accepted": self.accepted,
            "status": self.status,
            "generation": self.generation,
            "interrupt_status": self.interrupt_status,
            "failure": self.failure,
            "queues": [queue.state() for queue in self.queues],
        }

    def restore(self, state: dict) -> None:
        """The inverse of `state`, for a new device that is held; `release` goes on. Raises BadInput."""
        from kvmkit.devices.saved import checked
        from kvmkit.virtio.saved import DeviceState

        saved = checked(state, DeviceState, self.name)
        if saved.kind != self.kind or len(saved.queues) != len(self.queues):
            raise BadInput(f"saved state of {self.name}: it is another device's")
        settled = saved.status & FEATURES_OK  # before, a driver may have written anything there
        if saved.status & DRIVER_OK and not settled:
            raise BadInput(f"saved state of {self.name}: its driver works with features that were never settled")
        if settled and saved.accepted & ~self.features:
            raise BadInput(f"saved state of {self.name}: its driver uses features that this device does not offer")
        self.accepted = saved.accepted
        self.status = saved.status
        self.generation = saved.generation
        self.failure = saved.failure
        self.acknowledge(0xFFFFFFFF)
        pending: uint32_t = saved.interrupt_status
        fetch_or32(cython.address(self.interrupts_pending), pending, SEQ_CST)
        if settled and not self._features_fit():
            raise BadInput(f"saved state of {self.name}: its driver uses features that do not go together")
        for queue, its in zip(self.queues, state["queues"], strict=True):
            queue.restore(its, self.accepted & self.features)
