"""The compiled part of virtio-scsi: commands that move data, and what they end with when the host fails.

It takes what is well-formed and for a unit with nothing to report; all else goes to Python as it came (`command`),
alone, after what is in flight. So the mistakes of a driver and the rare commands are written once, there.

One lane serves all request queues. A unit may have a rate limit: then commands of its own wait, and no other unit's.
"""

import threading

import cython
from cython.cimports.kvmkit.accel.tcg.threads import monotonic
from cython.cimports.kvmkit.block.work import (
    IO_DISCARD,
    IO_FLUSH,
    IO_READ,
    IO_WRITE,
    IO_ZERO,
    Io,
    Worker,
    io_awake,
    io_begin,
    io_flush,
    io_has,
    io_take,
    io_wait,
)
from cython.cimports.kvmkit.memory.atomics import ACQUIRE, RELEASE, load32, store32
from cython.cimports.kvmkit.virtio.chain import (
    chain_free,
    chain_gather,
    chain_new,
    chain_read,
    chain_write,
    queue_break,
)
from cython.cimports.kvmkit.virtio.device import VirtioDevice
from cython.cimports.kvmkit.virtio.lane import POLLIN, Lane
from cython.cimports.kvmkit.virtio.limit import limit_set, limit_take, limit_wait
from cython.cimports.kvmkit.virtio.queue import Queue, queue_get, queue_has, queue_release
from cython.cimports.kvmkit.virtio.ring import VirtQueue
from cython.cimports.kvmkit.virtio.scsi.path import (
    BUSY,
    CDB_MOST,
    CHECK_CONDITION,
    FIXED_SENSE,
    FUA,
    GOOD,
    HEAD_BYTES,
    HOT_UNITS,
    MOST_DESCRIPTORS,
    QUEUE,
    READ_6,
    READ_10,
    READ_12,
    READ_16,
    REQUEST,
    REQUEST_MOST,
    REQUEST_QUEUES,
    RESPONSE_BYTES,
    RESPONSE_MOST,
    SLOTS,
    SYNCHRONIZE_10,
    SYNCHRONIZE_16,
    UNMAP,
    WRITE_6,
    WRITE_10,
    WRITE_12,
    WRITE_16,
    WRITE_SAME_10,
    WRITE_SAME_16,
    Command,
    HotUnit,
)
from cython.cimports.libc.errno import ENOSPC
from cython.cimports.libc.stdint import int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memset
from cython.cimports.posix.uio import iovec

PYTHON_REQUEST_BYTES: int = 1 << 20


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def big(p: cython.pointer(cython.const[uint8_t]), count: cython.int) -> uint64_t:
    """A number in a CDB."""
    value: uint64_t = 0
    i: cython.int
    for i in range(count):
        value = value << 8 | p[i]
    return value


@cython.cclass
class ScsiPath(VirtioDevice):
    """`targets` finds units. A subclass in Python has `command`, `heat` tells which units need it for everything.

    `uring=False` does without io_uring, by threads. `requests_in_python` counts what was not done here.
    """

    def __init__(self, memory, targets, most_transfer: int, *, uring: bool = True, **options):
        self.targets = targets
        self.heating = threading.Lock()
        self.most_transfer = most_transfer
        VirtioDevice.__init__(self, memory, **options)
        self.worker = Worker(SLOTS, uring)
        self.request_count = len(self.queues) - REQUEST
        if not 0 < self.request_count <= REQUEST_QUEUES:
            raise ValueError(f"{self.request_count} request queues: 1 to {REQUEST_QUEUES} can be")
        queue: Queue
        for i in range(self.request_count):
            queue = self.queues[REQUEST + i]
            self.requests[i] = cython.address(queue.q)
        self.commands = cython.cast(cython.pointer(Command), calloc(SLOTS, cython.sizeof(Command)))
        if self.commands == cython.NULL:
            raise MemoryError
        i: cython.int
        for i in range(SLOTS):
            c: cython.pointer(Command) = cython.address(self.commands[i])
            c.chain = chain_new(QUEUE)
            c.io.iov = cython.cast(cython.pointer(iovec), calloc(QUEUE, cython.sizeof(iovec)))
            if c.chain == cython.NULL or c.io.iov == cython.NULL:
                raise MemoryError
            c.io.owner = c
            c.next = i + 1 if i + 1 < SLOTS else -1
        lane: Lane = self.lanes[0]
        lane.watch(0, self.worker.descriptor(), POLLIN)

    def __dealloc__(self):
        i: cython.int
        if self.commands != cython.NULL:
            for i in range(SLOTS):
                chain_free(self.commands[i].chain)
                free(self.commands[i].io.iov)
        free(self.commands)

    def close(self) -> None:
        VirtioDevice.close(self)
        self.worker.close()

    # For the subclass.

    @property
    def uses_uring(self) -> bool:
        return self.worker.uses_uring

    def set_sizes(self, sense_bytes: int, cdb_bytes: int) -> None:
        """The sizes of sense data and of CDBs in requests; the lane may be running: a driver sets them before."""
        self.sense_bytes, self.cdb_bytes = sense_bytes, cdb_bytes

    def command(self, data: bytes, room: int) -> bytes:
        """Carry out a request; the response. On the lane's thread, with nothing else in flight."""
        raise NotImplementedError

    def still(self, action):
        """`action()`, while nothing is in flight."""
        with self.lock:
            for lane in self.lanes:
                lane.hold()
            try:
                return action()
            finally:
                self._go_on()

    def finish_all(self) -> None:
        """Take what the driver has offered and end it. For the lane's thread."""
        lane: Lane = self.lanes[0]
        i: cython.int
        with cython.nogil:
            for _ in range(self.request_count):  # together they may hold more than there are slots for
                for i in range(self.request_count):
                    if queue_has(self.requests[i]):
                        self.serve(lane, self.requests[i])
                        self.drain(lane)
            self.drain(lane)

    def in_flight(self, target: int, lun: int, tag: int | None) -> bool:
        """Whether there is a command for that unit, with that tag or (None) any. For the lane's thread."""
        i: cython.int
        for i in range(SLOTS):
            c: cython.pointer(Command) = cython.address(self.commands[i])
            if c.busy and c.target == target and c.lun == lun and (tag is None or c.tag == tag):
                return True
        return False

    def limit_unit(
        self, target: int, lun: int, bytes: float, byte_burst: float, operations: float, operation_burst: float
    ) -> None:
        """What the unit may move a second, 0 for no limit, and at once. While the lane is held."""
        unit: cython.pointer(HotUnit) = self.find_hot(target, lun)
        if unit == cython.NULL:
            if bytes or operations:
                raise ValueError(f"no place for a limit of target {target}, LUN {lun}")
            return
        limit_set(cython.address(unit.limit), bytes, byte_burst, operations, operation_burst)
        unit.limited = bytes > 0 or operations > 0

    def cool(self, target: int, lun: int) -> None:
        """The unit's commands go to Python from now on. Any thread."""
        with self.heating:
            unit: cython.pointer(HotUnit) = self.find_hot(target, lun)
            if unit != cython.NULL:
                store32(cython.address(unit.ready), 0, RELEASE)

    def heat(self, target: int, lun: int) -> None:
        """Look at the unit anew. On the lane's thread, or while it is held."""
        with self.heating:
            unit: cython.pointer(HotUnit) = self.find_hot(target, lun)
            found = self.targets.find(target, lun)
            if unit == cython.NULL:
                if found is None or self.hot_count >= HOT_UNITS:
                    return
                unit = cython.address(self.hot[self.hot_count])
                unit.target, unit.lun = target, lun
                unit.first = unit.last = -1
                self.hot_count += 1
            store32(cython.address(unit.ready), 0, RELEASE)
            facts = None if found is None else found.facts()
            if facts is None:
                return
            unit.optical, unit.readonly, unit.write_cache = facts.optical, facts.readonly, facts.write_cache
            unit.block, unit.blocks = facts.block_bytes, facts.blocks
            unit.fd, unit.direct_fd, unit.align = facts.fd, facts.direct_fd, facts.align
            store32(cython.address(unit.ready), 1, RELEASE)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def find_hot(self, target: uint8_t, lun: uint16_t) -> cython.pointer(HotUnit):
        i: cython.int
        for i in range(self.hot_count):
            if self.hot[i].target == target and self.hot[i].lun == lun:
                return cython.address(self.hot[i])
        return cython.NULL

    # On the lane's thread.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        if q.index < REQUEST:
            VirtioDevice.serve(self, lane, q)
            return
        while self.free >= 0:
            c: cython.pointer(Command) = cython.address(self.commands[self.free])
            if queue_get(q, c.chain) <= 0:
                return
            self.free = c.next
            c.busy = True
            c.q = q
            self.begin(lane, c, False)
        q.wanted = False  # until one comes back

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, lane: Lane) -> cython.bint:
        if lane.fired(0):
            io_awake(cython.address(self.worker.engine))
        worked: cython.bint = self.waiting > 0 and self.let_go(lane)
        if self.worker.engine.in_flight and io_has(cython.address(self.worker.engine)):
            worked = self.reap() or worked
        return worked

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush(self, lane: Lane) -> cython.void:
        if self.worker.engine.in_flight:
            io_flush(cython.address(self.worker.engine))
            if io_has(cython.address(self.worker.engine)):
                self.reap()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self, lane: Lane) -> cython.void:
        """What waits for a limit goes back to the driver, to be tried again: to do it now would be a way around it."""
        i: cython.int
        self.settle()
        for i in range(self.hot_count):
            while self.hot[i].first >= 0:
                c: cython.pointer(Command) = self.next_waiting(cython.address(self.hot[i]))
                c.data = 0
                c.left = c.chain.write_bytes - min(c.chain.write_bytes, RESPONSE_BYTES + self.sense_bytes)
                self.answer(c, 0, BUSY, cython.NULL)
        lane.due = 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def settle(self) -> cython.void:
        """Nothing is in flight when it comes back."""
        while self.worker.engine.in_flight:
            io_wait(cython.address(self.worker.engine))
            self.reap()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def reap(self) -> cython.bint:
        any_: cython.bint = False
        while True:
            io: cython.pointer(Io) = io_take(cython.address(self.worker.engine))
            if io == cython.NULL:
                return any_
            self.go_on(cython.cast(cython.pointer(Command), io.owner))
            any_ = True

    # Commands.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin(self, lane: Lane, c: cython.pointer(Command), waited: cython.bint) -> cython.void:
        """Begin a command, or have it wait for its unit's limit; `waited`: it has."""
        head: uint8_t[REQUEST_MOST]
        op: uint8_t
        memset(head, 0, REQUEST_MOST)
        c.target = c.lun = 0
        c.tag = 0
        if (
            c.chain.read_bytes >= HEAD_BYTES + self.cdb_bytes
            and c.chain.write_bytes >= RESPONSE_BYTES + self.sense_bytes
        ):
            chain_read(c.chain, 0, head, HEAD_BYTES + min(self.cdb_bytes, cython.cast(uint32_t, CDB_MOST)))
            c.target = head[1]
            c.lun = cython.cast(uint16_t, (head[2] << 8 | head[3]) & 0x3FFF)
            c.tag = big(head + 8, 8)
            unit: cython.pointer(HotUnit) = self.find_hot(c.target, c.lun)
            op = head[HEAD_BYTES]
            if unit != cython.NULL and unit.limited and op not in (0, SYNCHRONIZE_10, SYNCHRONIZE_16):
                if not waited and self.must_wait(lane, c, unit):
                    return
                limit_take(
                    cython.address(unit.limit),
                    c.chain.read_bytes
                    + c.chain.write_bytes
                    - HEAD_BYTES
                    - self.cdb_bytes
                    - RESPONSE_BYTES
                    - self.sense_bytes,
                )
            if (
                head[0] == 1
                and head[2] >> 6 <= 1
                and head[16] == 0  # a simple task: in any order
                and unit != cython.NULL
                and load32(cython.address(unit.ready), ACQUIRE)
                and self.fast(c, unit, head + HEAD_BYTES)
            ):
                return
        self.settle()
        self.slow(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def must_wait(self, lane: Lane, c: cython.pointer(Command), unit: cython.pointer(HotUnit)) -> cython.bint:
        """Behind those of the unit that wait already, or until its limit lets another one begin."""
        wait: int64_t = 0
        if unit.first < 0:
            wait = limit_wait(cython.address(unit.limit))
            if wait == 0:
                return False
            wait += monotonic()
            if lane.due == 0 or wait < lane.due:
                lane.due = wait
        index: cython.int = cython.cast(cython.int, c - self.commands)
        c.next = -1
        if unit.first < 0:
            unit.first = index
        else:
            self.commands[unit.last].next = index
        unit.last = index
        self.waiting += 1
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def next_waiting(self, unit: cython.pointer(HotUnit)) -> cython.pointer(Command):
        c: cython.pointer(Command) = cython.address(self.commands[unit.first])
        unit.first = c.next
        self.waiting -= 1
        return c

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def let_go(self, lane: Lane) -> cython.bint:
        """Begin those whose units' limits let them, and say when to look again."""
        any_: cython.bint = False
        due: int64_t = 0
        wait: int64_t
        i: cython.int
        for i in range(self.hot_count):
            while self.hot[i].first >= 0:
                wait = limit_wait(cython.address(self.hot[i].limit))
                if wait:
                    wait += monotonic()
                    due = wait if due == 0 else min(due, wait)
                    break
                self.begin(lane, self.next_waiting(cython.address(self.hot[i])), True)
                any_ = True
        lane.due = due
        return any_

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def slow(self, c: cython.pointer(Command)) -> cython.void:
        with cython.gil:
            self._slow(c)

    @cython.cfunc
    def _slow(self, c: cython.pointer(Command)):
        if c.chain.read_bytes > PYTHON_REQUEST_BYTES or c.chain.write_bytes > PYTHON_REQUEST_BYTES:
            queue_break(c.q, "a request of more bytes than this device takes")
            self.give_back(c, 0)
            return
        written: uint64_t = 0
        self.requests_in_python += 1
        try:
            data = bytearray(c.chain.read_bytes)
            if data:
                view: cython.uchar[:] = data
                chain_read(c.chain, 0, cython.address(view[0]), c.chain.read_bytes)
            answer: bytes = self.command(bytes(data), c.chain.write_bytes)
            ours: cython.const[cython.uchar][:] = answer
            if ours.shape[0]:
                written = chain_write(c.chain, 0, cython.address(ours[0]), ours.shape[0])
            self.heat(c.target, c.lun)
        except Exception as error:
            c.q.ready = False
            self.needs_reset(f"queue {c.q.index}: {type(error).__name__}: {error}")
        self.give_back(c, written)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def fast(
        self, c: cython.pointer(Command), unit: cython.pointer(HotUnit), cdb: cython.pointer(cython.const[uint8_t])
    ) -> cython.bint:
        """Begin a command. False: it is none of those that begin here, or there is something wrong with it."""
        op: uint8_t = cdb[0]
        length: cython.int = 6 if op < 0x20 else 10 if op < 0x60 else 16 if op < 0xA0 else 12
        if cdb[length - 1] & 4:  # NACA
            return False
        c.block = unit.block
        c.blocks = unit.blocks
        c.data = c.left = 0
        c.extent = c.extents = 0
        c.io.fd = unit.fd
        c.io.direct_fd = unit.direct_fd
        c.io.align = unit.align
        c.io.count = 0
        c.io.durable = False
        count: uint64_t
        if op == 0:  # TEST UNIT READY
            self.good(c)
            return True
        if op in (READ_10, READ_12, READ_16) or (op == READ_6 and not unit.optical):
            return self.move(c, unit, cdb, True)
        if op in (WRITE_6, WRITE_10, WRITE_12, WRITE_16):
            return not unit.readonly and self.move(c, unit, cdb, False)
        if op == SYNCHRONIZE_10 or (op == SYNCHRONIZE_16 and not unit.optical):
            c.first = big(cdb + 2, 4 if op == SYNCHRONIZE_10 else 8)
            count = big(cdb + 7, 2) if op == SYNCHRONIZE_10 else big(cdb + 10, 4)
            if c.first > c.blocks or count > c.blocks - c.first:
                return False
            if unit.readonly:
                self.good(c)
                return True
            c.io.kind = IO_FLUSH
            c.io.left = 0
            self.start(c)
            return True
        if unit.readonly or unit.optical:
            return False
        if op == UNMAP:
            return self.unmap(c, unit, cdb)
        if op in (WRITE_SAME_10, WRITE_SAME_16):
            return self.same(c, unit, cdb)
        return False

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def move(
        self,
        c: cython.pointer(Command),
        unit: cython.pointer(HotUnit),
        cdb: cython.pointer(cython.const[uint8_t]),
        inward: cython.bint,
    ) -> cython.bint:
        """READ and WRITE of each length."""
        group: uint8_t = cdb[0] >> 5
        count: uint64_t
        flags: uint8_t = 0
        if group == 0:
            c.first = big(cdb + 1, 3) & 0x1FFFFF
            count = cdb[4] if cdb[4] else 256
        else:
            flags = cdb[1]
            c.first = big(cdb + 2, 8 if group == 4 else 4)
            count = big(cdb + 10, 4) if group == 4 else big(cdb + 6, 4) if group == 5 else big(cdb + 7, 2)
        if flags & 0xE0 or c.first > c.blocks or count > c.blocks - c.first:
            return False
        length: uint64_t = count * c.block
        there: uint64_t = c.chain.write_bytes - RESPONSE_BYTES - self.sense_bytes
        if not inward:
            there = c.chain.read_bytes - HEAD_BYTES - self.cdb_bytes
        if length > self.most_transfer or length > there:
            return False
        c.left = there - length
        if length == 0:
            self.good(c)
            return True
        c.io.offset = c.first * c.block
        c.io.left = length
        if inward:
            c.data = length
            c.io.kind = IO_READ
            c.io.count = chain_gather(
                c.chain, c.chain.readable, c.chain.count, RESPONSE_BYTES + self.sense_bytes, length, c.io.iov
            )
        else:
            c.io.kind = IO_WRITE
            c.io.durable = (flags & FUA) != 0 or not unit.write_cache
            c.io.count = chain_gather(c.chain, 0, c.chain.readable, HEAD_BYTES + self.cdb_bytes, length, c.io.iov)
        self.start(c)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def unmap(
        self, c: cython.pointer(Command), unit: cython.pointer(HotUnit), cdb: cython.pointer(cython.const[uint8_t])
    ) -> cython.bint:
        head: uint8_t[8]
        first: uint64_t
        count: uint64_t
        length: uint64_t = big(cdb + 7, 2)
        there: uint64_t = c.chain.read_bytes - HEAD_BYTES - self.cdb_bytes
        if cdb[1] & 1 or length < 8 or length > there:
            return False
        chain_read(c.chain, HEAD_BYTES + self.cdb_bytes, head, 8)
        size: uint64_t = min(big(head + 2, 2), length - 8)
        if size // 16 > MOST_DESCRIPTORS or big(head + 2, 2) // 16 > MOST_DESCRIPTORS:
            return False
        c.extents = cython.cast(uint32_t, size // 16)
        i: uint32_t
        for i in range(c.extents):
            if not self.read_extent(c, i, cython.address(first), cython.address(count)):
                return False
        self.next_extent(c)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_extent(
        self,
        c: cython.pointer(Command),
        number: uint32_t,
        first: cython.pointer(uint64_t),
        count: cython.pointer(uint64_t),
    ) -> cython.bint:
        """A block descriptor of UNMAP. False: it is not within the disk."""
        descriptor: uint8_t[16]
        chain_read(c.chain, HEAD_BYTES + self.cdb_bytes + 8 + 16 * number, descriptor, 16)
        first[0] = big(descriptor, 8)
        count[0] = big(descriptor + 8, 4)
        return first[0] <= c.blocks and count[0] <= c.blocks - first[0]

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def next_extent(self, c: cython.pointer(Command)) -> cython.void:
        first: uint64_t
        count: uint64_t
        while c.extent < c.extents:
            # Read again, so checked again: the guest may have changed it.
            fits: cython.bint = self.read_extent(c, c.extent, cython.address(first), cython.address(count))
            c.extent += 1
            if not fits or count == 0:
                continue
            c.first = first
            c.io.kind = IO_DISCARD
            c.io.zeroes = True
            c.io.offset = first * c.block
            c.io.left = count * c.block
            if not io_begin(cython.address(self.worker.engine), cython.address(c.io)):
                return
        self.good(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def same(
        self, c: cython.pointer(Command), unit: cython.pointer(HotUnit), cdb: cython.pointer(cython.const[uint8_t])
    ) -> cython.bint:
        """WRITE SAME of zeros. What is to be durable at once, or is no zeros, is for Python."""
        piece: uint8_t[512]
        any_: uint8_t = 0
        wide: cython.bint = cdb[0] == WRITE_SAME_16
        no_data: cython.bint = wide and (cdb[1] & 1) != 0
        if cdb[1] & 0xF6 or (not wide and cdb[1] & 1) or not unit.write_cache:
            return False
        c.first = big(cdb + 2, 8 if wide else 4)
        count: uint64_t = big(cdb + 10, 4) if wide else big(cdb + 7, 2)
        if count == 0 or c.first > c.blocks or count > c.blocks - c.first:
            return False
        if not no_data:
            if c.chain.read_bytes - HEAD_BYTES - self.cdb_bytes < c.block:
                return False
            at: uint32_t = 0
            i: cython.int
            while at < c.block:
                chain_read(c.chain, HEAD_BYTES + self.cdb_bytes + at, piece, 512)
                for i in range(512):
                    any_ |= piece[i]
                at += 512
            if any_:
                return False
        c.io.kind = IO_DISCARD if cdb[1] & 8 else IO_ZERO
        c.io.zeroes = True
        c.io.offset = c.first * c.block
        c.io.left = count * c.block
        self.start(c)
        return True

    # How they end.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def start(self, c: cython.pointer(Command)) -> cython.void:
        if io_begin(cython.address(self.worker.engine), cython.address(c.io)):
            self.go_on(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def go_on(self, c: cython.pointer(Command)) -> cython.void:
        """A command's operation has ended."""
        if c.io.error:
            self.failed(c)
        elif c.extents:
            self.next_extent(c)
        else:
            self.good(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def good(self, c: cython.pointer(Command)) -> cython.void:
        self.answer(c, 0, GOOD, cython.NULL)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def failed(self, c: cython.pointer(Command)) -> cython.void:
        """The host failed: MEDIUM ERROR, or DATA PROTECT where it has no space. SPC-4, 4.5.3 and annex F."""
        sense: uint8_t[FIXED_SENSE]
        memset(sense, 0, FIXED_SENSE)
        sense[0] = 0x70
        sense[7] = FIXED_SENSE - 8
        if c.io.error == ENOSPC:
            sense[2], sense[12], sense[13] = 7, 0x27, 7
        elif c.io.kind == IO_READ:
            sense[2], sense[12] = 3, 0x11
        else:
            sense[2], sense[12] = 3, 0x0C
        place: uint64_t = c.io.offset // c.block
        if c.io.kind != IO_FLUSH and c.io.error != ENOSPC and place >> 32 == 0:
            sense[0] |= 0x80
            sense[3], sense[4] = cython.cast(uint8_t, place >> 24), cython.cast(uint8_t, place >> 16 & 0xFF)
            sense[5], sense[6] = cython.cast(uint8_t, place >> 8 & 0xFF), cython.cast(uint8_t, place & 0xFF)
        c.left += c.data
        c.data = 0
        self.answer(c, 0, CHECK_CONDITION, sense)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def answer(
        self,
        c: cython.pointer(Command),
        response: uint8_t,
        status: uint8_t,
        sense: cython.pointer(cython.const[uint8_t]),
    ) -> cython.void:
        """The response, 5.6.6.1, of which the driver has seen nothing so far; `sense` NULL: none."""
        head: uint8_t[RESPONSE_MOST]
        size: uint32_t = RESPONSE_BYTES + self.sense_bytes
        left: uint32_t = cython.cast(uint32_t, c.left)
        i: cython.int
        memset(head, 0, size)
        if sense != cython.NULL:
            count: uint32_t = min(cython.cast(uint32_t, FIXED_SENSE), self.sense_bytes)
            head[0] = cython.cast(uint8_t, count)
            for i in range(cython.cast(cython.int, count)):
                head[RESPONSE_BYTES + i] = sense[i]
        for i in range(4):
            head[4 + i] = cython.cast(uint8_t, left >> 8 * i & 0xFF)
        head[10] = status
        head[11] = response
        chain_write(c.chain, 0, head, size)
        self.give_back(c, size + c.data)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def give_back(self, c: cython.pointer(Command), written: uint64_t) -> cython.void:
        i: cython.int
        queue_release(c.q, c.chain, cython.cast(uint32_t, written))
        c.busy = False
        c.next = self.free
        self.free = cython.cast(cython.int, c - self.commands)
        for i in range(self.request_count):  # one that stopped for want of a slot may go on
            self.requests[i].wanted = True
