"""A virtqueue, whichever format it has: five verbs for its worker, and the class by which Python holds one.

A worker's round: `start` (the driver need not ring), then `get` and `release` while there are chains, `signal` after
a batch, `end` (the driver is to ring again; say whether more came meanwhile). `has` looks without taking.
"""

import cython
from cython.cimports.kvmkit.memory.ram import GuestMemory
from cython.cimports.kvmkit.virtio.chain import chain_free, chain_new, chain_read, chain_write, queue_break
from cython.cimports.kvmkit.virtio.packed import (
    packed_get,
    packed_has,
    packed_loud,
    packed_map,
    packed_put,
    packed_put_together,
    packed_quiet,
    packed_wants_interrupt,
)
from cython.cimports.kvmkit.virtio.queue import MEMBARRIER_PRIVATE, MEMBARRIER_REGISTER_PRIVATE, SYS_membarrier, syscall
from cython.cimports.kvmkit.virtio.ring import (
    QUEUE_MOST,
    SEQ_CST,
    Chain,
    Done,
    VirtQueue,
    fence,
    fetch_or32,
)
from cython.cimports.kvmkit.virtio.split import (
    split_get,
    split_has,
    split_loud,
    split_map,
    split_put,
    split_put_together,
    split_quiet,
    split_wants_interrupt,
)
from cython.cimports.libc.stdint import uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.unistd import write

from kvmkit.errors import BadInput, HostError
from kvmkit.virtio.features import EVENT_IDX, IN_ORDER, INDIRECT_DESC, RING_PACKED

# What one request to a device written in Python may bring or ask for: it is copied.
PYTHON_REQUEST_BYTES: int = 1 << 20


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def full_fence(q: cython.pointer(VirtQueue)) -> cython.void:
    """Order our stores before our loads, and the driver's too.

    The software CPU runs the guest's own fences as nothing, so there each of its threads is fenced from here.
    """
    if q.ram.written != cython.NULL:
        syscall(SYS_membarrier, MEMBARRIER_PRIVATE, 0, 0)
    fence(SEQ_CST)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_start(q: cython.pointer(VirtQueue)) -> cython.void:
    """A round begins: the driver need not ring the doorbell."""
    if not q.ready:
        return
    if q.packed:
        packed_quiet(q)
    else:
        split_quiet(q)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_has(q: cython.pointer(VirtQueue)) -> cython.bint:
    """There is a chain to get."""
    if not q.ready:
        return False
    return packed_has(q) if q.packed else split_has(q)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_get(q: cython.pointer(VirtQueue), chain: cython.pointer(Chain)) -> cython.int:
    """Take the next chain: 1; there is none: 0; the queue is broken: -1."""
    if not q.ready:
        return 0
    if not (packed_has(q) if q.packed else split_has(q)):
        return 0
    # A driver that offers one descriptor again and again must not have us keep count of ever more requests.
    if q.in_flight >= q.size:
        queue_break(q, "more chains are offered than the queue has descriptors")
        return -1
    got: cython.int = packed_get(q, chain) if q.packed else split_get(q, chain)
    if got > 0:
        chain.order = q.taken
        q.taken += 1
        q.in_flight += 1
        q.requests += 1
    return got


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_unget(q: cython.pointer(VirtQueue), chain: cython.pointer(Chain)) -> cython.void:
    """Put back the chain that was taken last, as if it had not been."""
    q.taken -= 1
    q.in_flight -= 1
    q.requests -= 1
    if not q.packed:
        q.next_avail -= 1
        return
    q.busy -= chain.slots
    if q.next_avail < chain.slots:
        q.next_avail += q.size
        q.avail_wrap = not q.avail_wrap
    q.next_avail -= chain.slots


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def put(q: cython.pointer(VirtQueue), id: uint16_t, slots: uint16_t, written: uint32_t) -> cython.void:
    if q.packed:
        packed_put(q, id, slots, written)
    else:
        split_put(q, id, written)
    q.in_flight -= 1


@cython.cfunc
@cython.inline
@cython.nogil
@cython.exceptval(check=False)
def tell_engine(q: cython.pointer(VirtQueue), chain: cython.pointer(cython.const[Chain])) -> cython.void:
    """Where a device wrote, translated code may have gone stale."""
    i: uint16_t
    if q.ram.written != cython.NULL:
        for i in range(chain.readable, chain.count):
            q.ram.written(q.ram.engine, chain.address[i], chain.iov[i].iov_len)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_release_together(
    q: cython.pointer(VirtQueue),
    chains: cython.pointer(cython.pointer(Chain)),
    written: cython.pointer(uint32_t),
    count: cython.int,
) -> cython.void:
    """Give chains back so that the driver sees all of them or none. They must be those that were taken first."""
    i: cython.int
    for i in range(count):
        tell_engine(q, chains[i])
    if q.packed:
        packed_put_together(q, chains, written, count)
    else:
        split_put_together(q, chains, written, count)
    q.in_flight -= count
    q.returned += count  # where the driver was promised order, it has it


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_release(q: cython.pointer(VirtQueue), chain: cython.pointer(Chain), written: uint32_t) -> cython.void:
    """Give a chain back, with `written` bytes put where the driver wanted an answer.

    Chains may come back in any order; where the driver was promised order, one waits for those before it.
    """
    tell_engine(q, chain)
    if not q.in_order:
        put(q, chain.id, chain.slots, written)
        return
    # `in_flight` is at most `size`, and so two orders in flight never share a place.
    mine: cython.pointer(Done) = cython.address(q.done[chain.order % QUEUE_MOST])
    mine.id, mine.slots, mine.written, mine.done = chain.id, chain.slots, written, True
    while q.returned != q.taken:
        next: cython.pointer(Done) = cython.address(q.done[q.returned % QUEUE_MOST])
        if not next.done:
            break
        next.done = False
        q.returned += 1
        put(q, next.id, next.slots, next.written)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def interrupt(q: cython.pointer(VirtQueue)) -> cython.void:
    one: uint64_t = 1
    if q.interrupt_status != cython.NULL:
        fetch_or32(q.interrupt_status, 1, SEQ_CST)
    q.interrupts += 1  # before it is one: who has seen it may look at once
    if q.interrupt >= 0:
        write(q.interrupt, cython.address(one), 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def signal_fenced(q: cython.pointer(VirtQueue)) -> cython.void:
    if q.unsignalled == 0:
        return
    wanted: cython.bint = packed_wants_interrupt(q) if q.packed else split_wants_interrupt(q)
    q.unsignalled = 0
    if wanted:
        interrupt(q)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_signal(q: cython.pointer(VirtQueue)) -> cython.void:
    """Interrupt the driver for what was given back since the last time, if it asked for that."""
    if q.unsignalled and q.ready:
        full_fence(q)
        signal_fenced(q)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_end(q: cython.pointer(VirtQueue)) -> cython.bint:
    """A round ends: signal, and have the driver ring again. True: chains came in between, begin another round."""
    if not q.ready:
        return False
    if not q.wanted:
        queue_signal(q)
        return False
    if q.packed:
        packed_loud(q)
    else:
        split_loud(q)
    full_fence(q)
    signal_fenced(q)
    return queue_has(q)


@cython.cclass
class Queue:
    """A virtqueue as the control side and devices in Python see it. `most` is the size offered to the driver."""

    def __cinit__(self, memory: GuestMemory, index: int, most: int):
        if not 0 < most <= QUEUE_MOST or most & (most - 1):
            raise BadInput(f"a queue of {most} entries: a power of two up to {QUEUE_MOST} can be")
        self.memory = memory
        self.failure = ""
        self.q.ram = cython.address(memory.ram)
        self.q.index = index
        self.q.most = self.q.size = most
        self.q.doorbell = -1
        self.q.interrupt = -1
        self.q.done = cython.cast(cython.pointer(Done), calloc(QUEUE_MOST, cython.sizeof(Done)))
        self.chain = chain_new(most)
        if self.q.done == cython.NULL or self.chain == cython.NULL:
            raise MemoryError
        if memory.ram.written != cython.NULL and syscall(SYS_membarrier, MEMBARRIER_REGISTER_PRIVATE, 0, 0) < 0:
            raise HostError("this host's kernel has no membarrier(2), which the software CPU needs beside a device")

    def __dealloc__(self):
        free(self.q.done)
        chain_free(self.chain)

    # What a transport does.

    def wire(self, doorbell: cython.int, interrupt: cython.int, status: cython.size_t = 0) -> None:
        """The eventfds: rung by the driver, and written to interrupt it (-1: none). `status`: address of a u32."""
        self.q.doorbell = doorbell
        self.q.interrupt = interrupt
        self.q.interrupt_status = cython.cast(cython.pointer(uint32_t), status)

    def enable(self, size: int, descriptors: uint64_t, driver: uint64_t, device: uint64_t, features: uint64_t) -> bool:
        """Begin with the driver's rings, empty, in the format `features` say. False: they can't be; see `failure`."""
        q = cython.address(self.q)
        q.ready = False
        q.broken = cython.NULL
        self.failure = ""
        q.packed = (features & RING_PACKED) != 0
        q.event_index = (features & EVENT_IDX) != 0
        q.indirect = (features & INDIRECT_DESC) != 0
        q.in_order = (features & IN_ORDER) != 0
        q.desc_address, q.driver_address, q.device_address = descriptors, driver, device
        q.next_avail = q.next_used = q.taken = q.returned = q.in_flight = q.busy = q.unsignalled = 0
        q.avail_wrap = q.used_wrap = q.wanted = True
        for i in range(QUEUE_MOST):
            q.done[i].done = False
        if not 0 < size <= q.most:
            self.failure = f"a size of {size}, of at most {q.most}"
            return False
        q.size = size
        if not (packed_map(q) if q.packed else split_map(q)):
            self.failure = "rings that are not aligned or not in memory"
            return False
        q.ready = True
        return True

    def widen(self) -> None:
        """Take rings of any size, where no transport tells the driver of a largest one."""
        self.q.most = QUEUE_MOST

    def disable(self) -> None:
        """Forget the rings. Its worker must not be running."""
        self.q.ready = False
        self.q.size = self.q.most

    @property
    def index(self) -> int:
        return self.q.index

    @property
    def most(self) -> int:
        return self.q.most

    @property
    def ready(self) -> bool:
        return self.q.ready

    @property
    def doorbell(self) -> int:
        return self.q.doorbell

    @property
    def broken(self) -> str:
        """What the driver did that ended this queue; empty: nothing."""
        if self.q.broken != cython.NULL:
            return cython.cast(bytes, self.q.broken).decode()
        return self.failure

    @property
    def requests(self) -> int:
        """Chains taken since the device was made."""
        return self.q.requests

    @property
    def interrupts(self) -> int:
        return self.q.interrupts

    # What a device written in Python does.

    def start(self) -> None:
        queue_start(cython.address(self.q))

    def has(self) -> bool:
        return queue_has(cython.address(self.q))

    def get(self):
        """Take the next chain: (what the driver sent, bytes there is room for in the answer), or None.

        It is to be given back by `release` before the next one is taken. Raises BadInput at a chain of more than
        1 MiB, which also breaks the queue.
        """
        q = cython.address(self.q)
        if queue_get(q, self.chain) <= 0:
            return None
        if self.chain.read_bytes > PYTHON_REQUEST_BYTES or self.chain.write_bytes > PYTHON_REQUEST_BYTES:
            queue_unget(q, self.chain)
            queue_break(q, "a request of more bytes than this device takes")
            return None
        length: uint64_t = self.chain.read_bytes
        data = bytearray(length)
        if length:
            view: cython.uchar[:] = data
            chain_read(self.chain, 0, cython.address(view[0]), length)
        return bytes(data), self.chain.write_bytes

    def release(self, answer: bytes = b"") -> None:
        """Give back the chain that `get` took, with `answer`; what has no room is left out."""
        data: cython.const[cython.uchar][:] = answer
        written: uint64_t = 0
        if data.shape[0]:
            written = chain_write(self.chain, 0, cython.address(data[0]), data.shape[0])
        queue_release(cython.address(self.q), self.chain, cython.cast(uint32_t, written))

    def rest(self) -> None:
        """Leave what there is: `handle` is not to be called again before the driver or somebody here rings."""
        self.q.wanted = False

    def signal(self) -> None:
        queue_signal(cython.address(self.q))

    def end(self) -> bool:
        return queue_end(cython.address(self.q))

    # Saved state.

    def state(self) -> dict:
        """Where it stands; while its worker is paused, so that nothing is in flight."""
        q = cython.address(self.q)
        return {
            "size": q.size,
            "ready": bool(q.ready),
            "descriptors": q.desc_address,
            "driver": q.driver_address,
            "device": q.device_address,
            "next_avail": q.next_avail,
            "next_used": q.next_used,
            "avail_wrap": bool(q.avail_wrap),
            "used_wrap": bool(q.used_wrap),
            "broken": self.broken,
        }

    def restore(self, state: dict, features: int) -> None:
        """Take what `state` gave. Raises BadInput when it can't be."""
        from kvmkit.devices.saved import checked
        from kvmkit.virtio.saved import QueueState

        checked(state, QueueState, f"queue {self.index}")
        q = cython.address(self.q)
        if not state["ready"]:
            self.disable()
            self.failure = state["broken"]
            return
        if not self.enable(state["size"], state["descriptors"], state["driver"], state["device"], features):
            raise BadInput(f"saved state of queue {q.index}: {self.failure}")
        next_avail: int = state["next_avail"]
        next_used: int = state["next_used"]
        if q.packed and (next_avail >= q.size or next_used >= q.size):  # they are places in the ring
            q.ready = False
            raise BadInput(f"saved state of queue {q.index}: an index is not below the queue's size")
        q.next_avail, q.next_used = next_avail, next_used
        q.avail_wrap, q.used_wrap = state["avail_wrap"], state["used_wrap"]
