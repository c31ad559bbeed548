"""Queues that are passed on to another process: the guest's requests, copied into rings of our own.

A relay stands between the guest's rings and the backend's. What it costs is a wake-up; what it brings:
the engine learns what was written to memory (the software CPU must forget code it has translated from there) and
gives the fences that its guests' instructions lack; every address is checked before the backend sees it; a packed ring
can meet a backend that knows split ones only; and when the backend dies, what it had not answered is still known.

The data itself is not copied: the backend maps the guest's memory. But a disk's writes are, until the guest's next
flush has been answered: a backend keeps parts of what it answered in its own memory (qcow2 its tables), which dies with
it, and a guest that goes on counts on them. They are written again, in the order in which they were answered on all
queues together, before anything else.
"""

import mmap
import os

import cython
from cython.cimports.kvmkit.accel.tcg.threads import (
    monotonic,
    pthread_mutex_destroy,
    pthread_mutex_init,
    pthread_mutex_lock,
    pthread_mutex_unlock,
)
from cython.cimports.kvmkit.memory.ram import GuestMemory
from cython.cimports.kvmkit.virtio.chain import chain_free, chain_new, chain_read, chain_write
from cython.cimports.kvmkit.virtio.lane import POLLIN, Lane, pollfd, ppoll
from cython.cimports.kvmkit.virtio.limit import limit_take
from cython.cimports.kvmkit.virtio.queue import Queue, queue_get, queue_release
from cython.cimports.kvmkit.virtio.ring import (
    ACQUIRE,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    RELEASE,
    SEQ_CST,
    Chain,
    VirtQueue,
    fence,
    load16,
    load32,
    store16,
)
from cython.cimports.kvmkit.virtio.vhost_user.relay import (
    AGAIN_HEADER,
    AGAIN_MS,
    AGAIN_STATUS,
    AVAIL_AT,
    BOUNCE,
    BOUNCE_AT,
    ENOTCONN_CODE,
    FINISH_MS,
    FLUSH_HEADER,
    FLUSH_STATUS,
    FUSE_ANSWER,
    FUSE_HEADER,
    FUSE_INIT,
    KEPT_MOST,
    PART,
    RING,
    SPARE_AT,
    T_DISCARD,
    T_FLUSH,
    T_OUT,
    T_WRITE_ZEROES,
    TABLES_AT,
    USED_AT,
    DiskHeader,
    Kept,
    Ring,
    Slot,
    Unflushed,
)
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free, malloc
from cython.cimports.libc.string import memcpy, memset
from cython.cimports.posix.time import timespec
from cython.cimports.posix.unistd import read, write

from kvmkit.errors import HostError
from kvmkit.virtio.features import INDIRECT_DESC

QUEUE: int = 256
RINGS_AT: int = 1 << 44
"""The rings' guest physical address: behind all RAM. Only backends see it."""


@cython.cclass
class Relay(VirtioDevice):
    """`queues` of them, each with a lane. Control is by Python: `prepare` a ring while its lane is held, `connect` it.

    `trouble` is an eventfd that is written when a backend has broken the protocol of a ring; see `wrong`.
    """

    def __cinit__(self):
        self.trouble = self.rings_fd = -1
        pthread_mutex_init(cython.address(self.unflushed_lock), cython.NULL)

    def __init__(self, memory: GuestMemory, kind: int, queues: int, *, indirect: bool = True, **options):
        self.indirect = indirect
        VirtioDevice.__init__(self, memory, kind, [QUEUE] * queues, **options)
        if not indirect:  # then each segment takes a descriptor of the backend's, as many as the guest's
            self.features &= ~cython.cast(uint64_t, INDIRECT_DESC)
        self.rings_bytes = queues * PART
        try:
            self.rings_fd = os.memfd_create("kvmkit-rings", os.MFD_CLOEXEC | os.MFD_ALLOW_SEALING)
            os.ftruncate(self.rings_fd, self.rings_bytes)
            self.mapping = mmap.mmap(self.rings_fd, self.rings_bytes, flags=mmap.MAP_SHARED)
        except OSError as error:
            raise HostError(f"{self.name}: no memory for its rings: {error.strerror}") from error
        # A backend that makes the file shorter would have us fault.
        import fcntl

        fcntl.fcntl(self.rings_fd, fcntl.F_ADD_SEALS, fcntl.F_SEAL_SHRINK | fcntl.F_SEAL_GROW | fcntl.F_SEAL_SEAL)
        view: cython.uchar[:] = self.mapping
        self.base = cython.address(view[0])
        self.rings = cython.cast(cython.pointer(Ring), calloc(queues, cython.sizeof(Ring)))
        if self.rings == cython.NULL:
            raise MemoryError
        self.ring_count = queues
        self.trouble = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        i: cython.int
        for i in range(queues):
            self._make_ring(i)

    def _make_ring(self, index: int) -> None:
        r: cython.pointer(Ring) = cython.address(self.rings[index])
        r.memory = self.base + cython.cast(cython.size_t, index) * PART
        r.guest = cython.cast(uint64_t, RINGS_AT) + cython.cast(uint64_t, index) * PART
        r.indirect = self.indirect
        r.kick = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        r.call = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        i: cython.int
        for i in range(RING):
            r.slots[i].chain = chain_new(RING)
            if r.slots[i].chain == cython.NULL:
                raise MemoryError
        self.forget(index)
        lane: Lane = self.lanes[index]
        lane.context = r
        lane.watch(0, r.call, POLLIN)

    def __dealloc__(self):
        i: cython.int
        j: cython.int
        self.drop(self.unflushed.answered)
        pthread_mutex_destroy(cython.address(self.unflushed_lock))
        if self.rings != cython.NULL:
            for i in range(self.ring_count):
                for j in range(RING):
                    chain_free(self.rings[i].slots[j].chain)
                if self.rings[i].kick > 0:
                    os.close(self.rings[i].kick)
                    os.close(self.rings[i].call)
            free(self.rings)
        if self.trouble >= 0:
            os.close(self.trouble)
        if self.rings_fd >= 0:
            os.close(self.rings_fd)

    # Control, while the lane is held or was never run.

    @cython.cfunc
    @cython.exceptval(check=False)
    def ring_at(self, index: cython.int) -> cython.pointer(Ring):
        return cython.address(self.rings[index if 0 <= index < self.ring_count else 0])

    def keep(self, wanted: bool) -> None:
        """This is a disk whose driver flushes: keep what it writes until then. Else: forget that. No lane runs."""
        i: cython.int
        for i in range(self.ring_count):
            self.rings[i].keep = wanted
        if not wanted:
            self.drop(self.unflushed.answered)

    def replay(self, index: int) -> int:
        """Write again, by this queue, what was not flushed; no lane runs, and no queue has requests with the backend.

        How many writes it refused; -1: it does not answer.
        """
        r: cython.pointer(Ring) = self.ring_at(index)
        failed: cython.int
        with cython.nogil:
            failed = self.replay_all(r)
        return failed

    @property
    def kept(self) -> int:
        """Bytes that would be written again."""
        return self.unflushed.bytes

    def forget(self, index: int) -> None:
        """Drop all that is in flight: the driver has taken its queue back."""
        r: cython.pointer(Ring) = self.ring_at(index)
        i: cython.int
        for i in range(RING):
            if r.slots[i].busy and r.slots[i].ours:
                self.unflushed.flushing = False
            r.slots[i].busy = r.slots[i].ours = False
            r.slots[i].next = i + 1 if i + 1 < RING else -1
        r.free = 0
        r.in_flight = 0
        r.fresh = False
        self.prepare(index)

    def prepare(self, index: int) -> None:
        """An empty ring, for a backend that begins."""
        r: cython.pointer(Ring) = self.ring_at(index)
        memset(r.memory, 0, TABLES_AT)
        r.available = r.seen = 0
        r.wrong = cython.NULL
        i: cython.int
        for i in range(RING):
            r.link[i] = i + 1
            r.slot_of[i] = -1
        r.free_descriptor = 0

    def requeue(self, index: int) -> None:
        """What another backend has left unanswered, into the ring."""
        r: cython.pointer(Ring) = self.ring_at(index)
        i: cython.int
        busy = []
        for i in range(RING):
            if r.slots[i].busy:
                busy.append((cython.cast(uint16_t, r.slots[i].chain.order), i))
        if not busy:
            return
        # In the order in which they were taken, which counts modulo 65536.
        first = min(order for order, _ in busy) if max(busy)[0] - min(busy)[0] < 32768 else 32768
        for _, i in sorted(busy, key=lambda one: (one[0] - first) % 65536):
            self.put(r, i)

    def collect(self, index: int) -> None:
        """Take back what the backend has answered; the lane is held."""
        r: cython.pointer(Ring) = self.ring_at(index)
        queue: Queue = self.queues[index]
        if r.up:
            self.reap(r, cython.address(queue.q))
        queue.signal()

    def connect(self, index: int, up: bool) -> None:
        """A backend serves this ring from now on, or none does."""
        r: cython.pointer(Ring) = self.ring_at(index)
        r.up = up
        r.fresh = up

    def give_up(self, index: int) -> None:
        """Answer every request of this queue with an error (FUSE's ENOTCONN), now and until a session begins anew."""
        r: cython.pointer(Ring) = self.ring_at(index)
        queue: Queue = self.queues[index]
        r.up = False
        r.refuse = True
        i: cython.int
        for i in range(RING):
            if r.slots[i].busy:
                self.fail(r, cython.address(queue.q), i)
        queue.signal()

    def addresses(self, index: int) -> tuple:
        """Our addresses of descriptors, available ring and used ring; the eventfds for kick and call."""
        r: cython.pointer(Ring) = self.ring_at(index)
        at = cython.cast(cython.size_t, r.memory)
        return at, at + AVAIL_AT, at + USED_AT, r.kick, r.call

    @property
    def rings_host(self) -> int:
        return cython.cast(cython.size_t, self.base)

    def in_flight(self, index: int) -> int:
        """Requests that are with the backend."""
        return self.ring_at(index).in_flight

    def relayed(self, index: int) -> int:
        """Requests passed on since the device was made."""
        return self.ring_at(index).relayed

    def wrong(self) -> str:
        """What a backend did to a ring that it may not; empty: nothing."""
        i: cython.int
        for i in range(self.ring_count):
            if self.rings[i].wrong != cython.NULL:
                return cython.cast(bytes, self.rings[i].wrong).decode()
        return ""

    # On a lane's thread.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        r: cython.pointer(Ring) = cython.cast(cython.pointer(Ring), lane.context)
        if r.keep and self.unflushed.bytes > KEPT_MOST and r.up and not self.flush_ours(r):
            return
        while r.free >= 0 and (r.up or r.refuse):
            if not self.may_begin(lane, q):
                return
            index: cython.int = r.free
            if queue_get(q, r.slots[index].chain) <= 0:
                return
            r.free = r.slots[index].next
            r.slots[index].busy = True
            r.in_flight += 1
            r.relayed += 1
            if r.keep:
                self.note(cython.address(r.slots[index]))
            limit_take(cython.address(self.limit), r.slots[index].chain.read_bytes + r.slots[index].chain.write_bytes)
            if r.refuse and not self.begins(r, index):
                self.fail(r, q, index)
            else:
                self.put(r, index)
        q.wanted = False  # until one comes back, or a backend

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, lane: Lane) -> cython.bint:
        r: cython.pointer(Ring) = cython.cast(cython.pointer(Ring), lane.context)
        value: uint64_t
        if lane.fired(0):
            read(r.call, cython.address(value), 8)
        return r.up and self.reap(r, lane.queues[0])

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush(self, lane: Lane) -> cython.void:
        r: cython.pointer(Ring) = cython.cast(cython.pointer(Ring), lane.context)
        one: uint64_t = 1
        if not r.fresh or not r.up:
            return
        r.fresh = False
        store16(r.memory + AVAIL_AT + 2, r.available, RELEASE)
        fence(SEQ_CST)
        if not load16(r.memory + USED_AT, ACQUIRE) & 1:
            write(r.kick, cython.address(one), 8)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self, lane: Lane) -> cython.void:
        """Where `finishing`, wait for the backend, up to some seconds; else leave with it what it has."""
        r: cython.pointer(Ring) = cython.cast(cython.pointer(Ring), lane.context)
        fds: pollfd
        span: timespec
        until: int64_t = monotonic() + cython.cast(int64_t, FINISH_MS) * 1000000
        self.flush(lane)
        if r.up:
            self.reap(r, lane.queues[0])
        while self.finishing and r.up and r.in_flight and monotonic() < until:
            fds.fd = r.call
            fds.events = POLLIN
            span.tv_sec = 0
            span.tv_nsec = 5000000
            ppoll(cython.address(fds), 1, cython.address(span), cython.NULL)
            self.reap(r, lane.queues[0])

    # Slots.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def put(self, r: cython.pointer(Ring), index: cython.int) -> cython.void:
        """A slot's chain into the backend's ring. There are descriptors enough: the guest's ring has no more."""
        chain: cython.pointer(Chain) = r.slots[index].chain
        head: uint16_t = r.free_descriptor
        table: cython.pointer(uint64_t)
        flags: uint64_t
        i: uint16_t
        r.slots[index].head = head
        r.slot_of[head] = index
        if r.slots[index].ours:  # header and status, in two direct descriptors
            table = cython.cast(cython.pointer(uint64_t), r.memory + 16 * head)
            flags = DESC_NEXT
            table[0] = r.guest + SPARE_AT + FLUSH_HEADER
            table[1] = cython.sizeof(DiskHeader) | flags << 32 | cython.cast(uint64_t, r.link[head]) << 48
            table = cython.cast(cython.pointer(uint64_t), r.memory + 16 * r.link[head])
            flags = DESC_WRITE
            table[0] = r.guest + SPARE_AT + FLUSH_STATUS
            table[1] = 1 | flags << 32
            r.free_descriptor = r.link[r.link[head]]
        elif r.indirect:
            r.free_descriptor = r.link[head]
            table = cython.cast(cython.pointer(uint64_t), r.memory + TABLES_AT + 16 * RING * index)
            for i in range(chain.count):
                flags = DESC_WRITE if i >= chain.readable else 0
                if i + 1 < chain.count:
                    flags |= DESC_NEXT
                table[2 * i] = chain.address[i]
                table[2 * i + 1] = chain.iov[i].iov_len | flags << 32 | cython.cast(uint64_t, i + 1) << 48
            table = cython.cast(cython.pointer(uint64_t), r.memory + 16 * head)
            table[0] = r.guest + TABLES_AT + 16 * RING * index
            table[1] = 16 * cython.cast(uint64_t, chain.count) | cython.cast(uint64_t, DESC_INDIRECT) << 32
        else:
            at: uint16_t = head
            for i in range(chain.count):
                flags = DESC_WRITE if i >= chain.readable else 0
                if i + 1 < chain.count:
                    flags |= DESC_NEXT
                table = cython.cast(cython.pointer(uint64_t), r.memory + 16 * at)
                table[0] = chain.address[i]
                table[1] = chain.iov[i].iov_len | flags << 32 | cython.cast(uint64_t, r.link[at]) << 48
                at = r.link[at]
            r.free_descriptor = at
        store16(r.memory + AVAIL_AT + 4 + 2 * (r.available & (RING - 1)), head, RELEASE)
        r.available += 1
        r.fresh = True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def reap(self, r: cython.pointer(Ring), q: cython.pointer(VirtQueue)) -> cython.bint:
        """Give the guest what the backend has used. Nothing in its ring is believed."""
        used: cython.pointer(uint8_t) = r.memory + USED_AT
        end: uint16_t = load16(used + 2, ACQUIRE)
        count: uint16_t = end - r.seen
        if count == 0:
            return False
        if count > r.in_flight:
            self.blame(r, "it has used more requests than it was given")
            return False
        while r.seen != end:
            place: cython.pointer(uint8_t) = used + 4 + 8 * (r.seen & (RING - 1))
            head: uint32_t = load32(place, ACQUIRE)
            written: uint32_t = load32(place + 4, ACQUIRE)
            if head >= RING or r.slot_of[head] < 0:
                self.blame(r, "it has used a request that it does not have")
                return True
            index: cython.int = r.slot_of[head]
            if not r.slots[index].ours and written > r.slots[index].chain.write_bytes:
                self.blame(r, "it says that it wrote more than a request has room for")
                return True
            r.seen += 1
            self.take_back(r, q, index, written)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def take_back(
        self, r: cython.pointer(Ring), q: cython.pointer(VirtQueue), index: cython.int, written: uint32_t
    ) -> cython.void:
        chain: cython.pointer(Chain) = r.slots[index].chain
        head: uint16_t = r.slots[index].head
        last: uint16_t = head
        if r.slots[index].ours:
            last = r.link[head]
        elif not r.indirect:
            for _ in range(chain.count - 1):
                last = r.link[last]
        if r.keep:
            self.done(r, cython.address(r.slots[index]))
        # `link` is ours alone: the backend can't lead us astray by its descriptors.
        r.link[last] = r.free_descriptor
        r.free_descriptor = head
        r.slot_of[head] = -1
        self.release_slot(r, index)
        if r.slots[index].ours:
            r.slots[index].ours = self.unflushed.flushing = False
        elif q.ready:
            queue_release(q, chain, written)
        q.wanted = True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def release_slot(self, r: cython.pointer(Ring), index: cython.int) -> cython.void:
        """Its request is no longer in flight."""
        r.slots[index].busy = False
        r.slots[index].next = r.free
        r.free = index
        r.in_flight -= 1

    # What is kept of a disk's writes.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def note(self, slot: cython.pointer(Slot)) -> cython.void:
        """A request is sent: what it is, and what a flush covers, which is what was answered before on any queue."""
        slot.type = 0
        pthread_mutex_lock(cython.address(self.unflushed_lock))
        slot.covers = self.unflushed.answered
        pthread_mutex_unlock(cython.address(self.unflushed_lock))
        chain_read(slot.chain, 0, cython.address(slot.type), 4)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def done(self, r: cython.pointer(Ring), slot: cython.pointer(Slot)) -> cython.void:
        """A request was answered: keep a write, forget what a flush has covered."""
        chain: cython.pointer(Chain) = slot.chain
        status: cython.pointer(uint8_t)
        if slot.ours:
            status = r.memory + SPARE_AT + FLUSH_STATUS
        elif chain.write_bytes:
            status = cython.cast(cython.pointer(uint8_t), chain.iov[chain.count - 1].iov_base)
            status += chain.iov[chain.count - 1].iov_len - 1
        else:
            return
        if status[0] != 0:
            return
        if slot.type == T_FLUSH:
            pthread_mutex_lock(cython.address(self.unflushed_lock))
            self.drop(slot.covers)
            pthread_mutex_unlock(cython.address(self.unflushed_lock))
        elif slot.type == T_OUT or slot.type == T_DISCARD or slot.type == T_WRITE_ZEROES:
            k: cython.pointer(Kept) = cython.cast(cython.pointer(Kept), malloc(cython.sizeof(Kept) + chain.read_bytes))
            if k == cython.NULL:
                return
            k.bytes = chain.read_bytes
            k.next = cython.NULL
            chain_read(chain, 0, cython.cast(cython.p_void, k + 1), k.bytes)
            # Before the guest sees the answer: what it writes then on another queue comes after it here, too.
            u: cython.pointer(Unflushed) = cython.address(self.unflushed)
            pthread_mutex_lock(cython.address(self.unflushed_lock))
            u.answered += 1
            k.number = u.answered
            if u.last == cython.NULL:
                u.first = k
            else:
                u.last.next = k
            u.last = k
            u.bytes += k.bytes
            pthread_mutex_unlock(cython.address(self.unflushed_lock))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drop(self, up_to: uint64_t) -> cython.void:
        u: cython.pointer(Unflushed) = cython.address(self.unflushed)
        while u.first != cython.NULL and u.first.number <= up_to:
            k: cython.pointer(Kept) = u.first
            u.first = k.next
            u.bytes -= k.bytes
            free(k)
        if u.first == cython.NULL:
            u.last = cython.NULL

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush_ours(self, r: cython.pointer(Ring)) -> cython.bint:
        """Much is kept, and the driver does not flush: do it for him. False: no slot is free."""
        index: cython.int = r.free
        if index < 0 or r.in_flight > RING - 4 or (not r.indirect and r.in_flight):
            return index >= 0
        header: cython.pointer(DiskHeader) = cython.cast(cython.pointer(DiskHeader), r.memory + SPARE_AT + FLUSH_HEADER)
        header.type = T_FLUSH
        header.reserved = 0
        header.sector = 0
        (r.memory + SPARE_AT + FLUSH_STATUS)[0] = 255
        pthread_mutex_lock(cython.address(self.unflushed_lock))
        flushing: cython.bint = self.unflushed.flushing
        self.unflushed.flushing = True
        r.slots[index].covers = self.unflushed.answered
        pthread_mutex_unlock(cython.address(self.unflushed_lock))
        if flushing:
            return True
        r.free = r.slots[index].next
        r.slots[index].busy = r.slots[index].ours = True
        r.slots[index].type = T_FLUSH
        r.in_flight += 1
        self.put(r, index)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def again(
        self,
        r: cython.pointer(Ring),
        header: cython.pointer(DiskHeader),
        data: cython.pointer(cython.const[uint8_t]),
        length: uint64_t,
    ) -> cython.int:
        """One request of ours, alone in the ring: 0; the backend refuses it: 1; it does not answer: -1."""
        one: uint64_t = 1
        fds: pollfd
        span: timespec
        flags: uint64_t
        until: int64_t = monotonic() + cython.cast(int64_t, AGAIN_MS) * 1000000
        memcpy(r.memory + SPARE_AT + AGAIN_HEADER, header, cython.sizeof(DiskHeader))
        memcpy(r.memory + BOUNCE_AT, data, length)
        status: cython.pointer(uint8_t) = r.memory + SPARE_AT + AGAIN_STATUS
        status[0] = 255
        table: cython.pointer(uint64_t) = cython.cast(cython.pointer(uint64_t), r.memory)
        flags = DESC_NEXT
        table[0] = r.guest + SPARE_AT + AGAIN_HEADER
        table[1] = cython.sizeof(DiskHeader) | flags << 32 | cython.cast(uint64_t, 1) << 48
        table[2] = r.guest + BOUNCE_AT
        table[3] = length | flags << 32 | cython.cast(uint64_t, 2) << 48
        flags = DESC_WRITE
        table[4] = r.guest + SPARE_AT + AGAIN_STATUS
        table[5] = 1 | flags << 32
        store16(r.memory + AVAIL_AT + 4 + 2 * (r.available & (RING - 1)), 0, RELEASE)
        r.available += 1
        store16(r.memory + AVAIL_AT + 2, r.available, RELEASE)
        fence(SEQ_CST)
        write(r.kick, cython.address(one), 8)
        while load16(r.memory + USED_AT + 2, ACQUIRE) != r.available:
            if monotonic() > until:
                return -1
            fds.fd = r.call
            fds.events = POLLIN
            span.tv_sec = 0
            span.tv_nsec = 5000000
            if ppoll(cython.address(fds), 1, cython.address(span), cython.NULL) > 0:
                read(r.call, cython.address(one), 8)
                one = 1
        r.seen = r.available
        return 0 if status[0] == 0 else 1

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def replay_all(self, r: cython.pointer(Ring)) -> cython.int:
        failed: cython.int = 0
        header: DiskHeader
        k: cython.pointer(Kept) = self.unflushed.first
        while k != cython.NULL:
            data: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), k + 1)
            memcpy(cython.address(header), data, cython.sizeof(DiskHeader))
            data += cython.sizeof(DiskHeader)
            left: uint64_t = k.bytes - cython.sizeof(DiskHeader)
            while left:
                part: uint64_t = min(left, cython.cast(uint64_t, BOUNCE))
                if part < left and header.type != T_OUT:
                    failed += 1  # no disk takes a discard of that many segments
                    break
                result: cython.int = self.again(r, cython.address(header), data, part)
                if result < 0:
                    return -1
                failed += result
                header.sector += part // 512
                data += part
                left -= part
            k = k.next
        return failed

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begins(self, r: cython.pointer(Ring), index: cython.int) -> cython.bint:
        """A file system is mounted anew, and there is a backend, which knows nothing of the session before."""
        op: uint32_t = 0
        i: cython.int
        if not r.up or r.slots[index].chain.read_bytes < FUSE_HEADER:
            return False
        chain_read(r.slots[index].chain, 4, cython.address(op), 4)
        if op != FUSE_INIT:
            return False
        for i in range(self.ring_count):
            self.rings[i].refuse = False
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def fail(self, r: cython.pointer(Ring), q: cython.pointer(VirtQueue), index: cython.int) -> cython.void:
        """Answer a FUSE request: length, error, and the request's unique number. Source: <linux/fuse.h>."""
        chain: cython.pointer(Chain) = r.slots[index].chain
        unique: uint64_t = 0
        length: uint32_t = FUSE_ANSWER
        error: int32_t = -ENOTCONN_CODE
        written: uint32_t = 0
        if chain.read_bytes >= FUSE_HEADER and chain.write_bytes >= FUSE_ANSWER:
            chain_read(chain, 8, cython.address(unique), 8)
            chain_write(chain, 0, cython.address(length), 4)
            chain_write(chain, 4, cython.address(error), 4)
            chain_write(chain, 8, cython.address(unique), 8)
            written = FUSE_ANSWER
        self.release_slot(r, index)
        if q.ready:
            queue_release(q, chain, written)
        q.wanted = True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def blame(self, r: cython.pointer(Ring), what: cython.p_const_char) -> cython.void:
        """Listen to this backend no more; the requests stay, for the next one."""
        one: uint64_t = 1
        r.up = False
        r.wrong = what
        write(self.trouble, cython.address(one), 8)
