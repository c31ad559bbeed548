"""A disk. Source: virtio 1.2, 5.2.

Each queue has a lane with a worker of its own: an io_uring, or threads where the host has none.
"""

import os
import struct

import cython
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
from cython.cimports.kvmkit.virtio.blk import (
    MOST_DISCARD_SECTORS,
    MOST_SEGMENTS,
    MOST_ZERO_SECTORS,
    QUEUE,
    S_IOERR,
    S_OK,
    S_UNSUPP,
    SLOTS,
    T_DISCARD,
    T_FLUSH,
    T_GET_ID,
    T_IN,
    T_OUT,
    T_WRITE_ZEROES,
    BlkLane,
    Header,
    Request,
    Segment,
)
from cython.cimports.kvmkit.virtio.chain import (
    chain_free,
    chain_gather,
    chain_new,
    chain_read,
    chain_write,
    queue_break,
)
from cython.cimports.kvmkit.virtio.lane import POLLIN, Lane
from cython.cimports.kvmkit.virtio.limit import limit_take
from cython.cimports.kvmkit.virtio.queue import queue_get, queue_release
from cython.cimports.kvmkit.virtio.ring import Chain, VirtQueue
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.uio import iovec

KIND: int = 2
DRIVER: str = "CONFIG_VIRTIO_BLK (virtio_blk)"
SECTOR: int = 512

# Feature bits, 5.2.3.
SEG_MAX: int = 1 << 2
RO: int = 1 << 5
BLK_SIZE: int = 1 << 6
FLUSH: int = 1 << 9
TOPOLOGY: int = 1 << 10
CONFIG_WCE: int = 1 << 11
MQ: int = 1 << 12
DISCARD: int = 1 << 13
WRITE_ZEROES: int = 1 << 14

_WRITEBACK: int = 32  # its place in the configuration space


@cython.cclass
class Blk(VirtioDevice):
    """`disk` is a kvmkit.block.file.DiskFile, which this closes. `serial`: up to 20 bytes for VIRTIO_BLK_T_GET_ID.

    Without FLUSH (or with the write cache turned off by the driver) each write is on the disk when it comes back.
    `uring=False` does without io_uring, by threads.
    """

    def __init__(self, memory, disk, *, name: str = "disk", serial: str = "", queues: int = 1, uring=True, log=None):
        self.disk = disk
        self.readonly = disk.readonly
        self.size = disk.size
        self.writeback = True
        self.contexts = []
        self.workers = []
        for i, byte in enumerate(serial.encode()[:20]):
            self.serial[i] = byte
        features = SEG_MAX | BLK_SIZE | FLUSH | TOPOLOGY | CONFIG_WCE | MQ
        features |= RO if disk.readonly else DISCARD | WRITE_ZEROES
        VirtioDevice.__init__(
            self,
            memory,
            KIND,
            [QUEUE] * queues,
            name=name,
            driver=DRIVER,
            features=features,
            config=self._config(queues),
            log=log,
        )
        for lane in self.lanes:
            self._make_context(lane, bool(uring))

    def _config(self, queues: int) -> bytes:
        physical = self.disk.physical // SECTOR
        return struct.pack(
            "<QIIHBBIBBHIBxHIIIIIBxxx",
            self.size // SECTOR,
            0,
            QUEUE - 2,
            0,
            0,
            0,
            SECTOR,
            physical.bit_length() - 1,
            0,
            physical,
            0,
            1 if self.writeback else 0,
            queues,
            MOST_DISCARD_SECTORS,
            MOST_SEGMENTS,
            physical,
            MOST_ZERO_SECTORS,
            MOST_SEGMENTS,
            1,
        )

    def _make_context(self, lane: Lane, uring: cython.bint) -> None:
        worker: Worker = Worker(SLOTS, uring)
        self.workers.append(worker)
        c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), calloc(1, cython.sizeof(BlkLane)))
        if c == cython.NULL:
            raise MemoryError
        self.contexts.append(cython.cast(cython.size_t, c))
        c.engine = cython.address(worker.engine)
        lane.context = c
        c.q = lane.queues[0]
        c.requests = cython.cast(cython.pointer(Request), calloc(SLOTS, cython.sizeof(Request)))
        if c.requests == cython.NULL:
            raise MemoryError
        i: cython.int
        for i in range(SLOTS):
            r: cython.pointer(Request) = cython.address(c.requests[i])
            r.chain = chain_new(QUEUE)
            r.io.iov = cython.cast(cython.pointer(iovec), calloc(QUEUE, cython.sizeof(iovec)))
            if r.chain == cython.NULL or r.io.iov == cython.NULL:
                raise MemoryError
            r.io.owner = r
            r.io.fd = self.disk.fd
            r.io.direct_fd = self.disk.direct_fd
            r.io.align = self.disk.align
            r.next = i + 1 if i + 1 < SLOTS else -1
        lane.watch(0, worker.descriptor(), POLLIN)

    def __dealloc__(self):
        i: cython.int
        for address in self.contexts or []:
            c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), cython.cast(cython.size_t, address))
            if c.requests != cython.NULL:
                for i in range(SLOTS):
                    chain_free(c.requests[i].chain)
                    free(c.requests[i].io.iov)
            free(c.requests)
            free(c)

    def close(self) -> None:
        VirtioDevice.close(self)
        for worker in self.workers:
            worker.close()
        self.disk.close()

    @property
    def uses_uring(self) -> bool:
        """Each lane has an io_uring."""
        return all(worker.uses_uring for worker in self.workers)

    def resize(self) -> int:
        """Take the size that the file has now, and tell the driver; the size. A last part of a sector is left out."""
        self.size = self.disk.measure() // SECTOR * SECTOR
        self.disk.size = self.size
        self.set_config(self._config(len(self.queues)))
        return self.size

    def accepts(self, features: int) -> bool:
        self.writeback = (features & FLUSH) != 0
        self.set_config(self._config(len(self.queues)), interrupt=False)
        return True

    def config_written(self, offset: int, size: int, value: int) -> None:
        if offset == _WRITEBACK and size == 1 and self.accepted & CONFIG_WCE:
            self.writeback = value != 0
            self.set_config(self._config(len(self.queues)), interrupt=False)

    def stopped(self) -> None:
        self.writeback = True

    # On a lane's thread.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def serve(self, lane: Lane, q: cython.pointer(VirtQueue)) -> cython.void:
        c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), lane.context)
        while c.free >= 0:
            c.limited = not self.may_begin(lane, q)
            if c.limited:
                return
            r: cython.pointer(Request) = cython.address(c.requests[c.free])
            if queue_get(q, r.chain) <= 0:
                return
            c.free = r.next
            if not self.begin(c, r):
                r.next = c.free
                c.free = cython.cast(cython.int, r - c.requests)
                return
        q.wanted = False  # until one comes back

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def look(self, lane: Lane) -> cython.bint:
        c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), lane.context)
        if lane.fired(0):
            io_awake(c.engine)
        if c.engine.in_flight == 0 or not io_has(c.engine):
            return False
        return self.reap(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush(self, lane: Lane) -> cython.void:
        c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), lane.context)
        if c.engine.in_flight:
            io_flush(c.engine)
            if io_has(c.engine):  # what was in the page cache is done already
                self.reap(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self, lane: Lane) -> cython.void:
        c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), lane.context)
        while c.engine.in_flight:
            io_wait(c.engine)
            self.reap(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def reap(self, c: cython.pointer(BlkLane)) -> cython.bint:
        any_: cython.bint = False
        while True:
            io: cython.pointer(Io) = io_take(c.engine)
            if io == cython.NULL:
                return any_
            self.go_on(c, cython.cast(cython.pointer(Request), io.owner))
            any_ = True

    # Requests.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin(self, c: cython.pointer(BlkLane), r: cython.pointer(Request)) -> cython.bint:
        """Begin a request. False: it is malformed, and the queue is broken."""
        header: Header
        chain: cython.pointer(Chain) = r.chain
        io: cython.pointer(Io) = cython.address(r.io)
        if chain.read_bytes < cython.sizeof(Header) or chain.write_bytes < 1:
            return queue_break(c.q, "a request without a header or without room for its status")
        chain_read(chain, 0, cython.address(header), cython.sizeof(Header))
        r.type = header.type
        io.count = 0
        io.durable = False
        if header.type != T_FLUSH and header.type != T_GET_ID:
            limit_take(cython.address(self.limit), chain.write_bytes + chain.read_bytes - 1 - cython.sizeof(Header))
        if header.type == T_IN or header.type == T_OUT:
            io.left = chain.write_bytes - 1 if header.type == T_IN else chain.read_bytes - cython.sizeof(Header)
            io.offset = header.sector * 512
            # Beyond the disk's end there is nothing to read, and a write would make the file larger.
            if (
                io.left == 0
                or io.left % 512
                or header.sector >= self.size // 512
                or io.left > self.size - io.offset
                or (header.type == T_OUT and self.readonly)
            ):
                self.finish(c, r, S_IOERR)
                return True
            if header.type == T_IN:
                io.kind = IO_READ
                io.count = chain_gather(chain, chain.readable, chain.count, 0, io.left, io.iov)
            else:
                io.kind = IO_WRITE
                io.durable = not self.writeback
                io.count = chain_gather(chain, 0, chain.readable, cython.sizeof(Header), io.left, io.iov)
            if io_begin(c.engine, io):
                self.go_on(c, r)
        elif header.type == T_FLUSH:
            io.kind = IO_FLUSH
            io.left = 0
            io_begin(c.engine, io)
        elif header.type == T_GET_ID:
            chain_write(chain, 0, self.serial, min(chain.write_bytes - 1, cython.cast(uint64_t, 20)))
            self.finish(c, r, S_OK)
        elif header.type == T_DISCARD or header.type == T_WRITE_ZEROES:
            status: uint8_t = self.check_segments(r)
            if status != S_OK:
                self.finish(c, r, status)
            else:
                self.next_segment(c, r)
        else:
            self.finish(c, r, S_UNSUPP)
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def go_on(self, c: cython.pointer(BlkLane), r: cython.pointer(Request)) -> cython.void:
        """A request's operation has ended."""
        if r.io.error:
            self.errors += 1
            if self.told != r.io.error:
                self.told = r.io.error
                self.failed(r.io.error)
            self.finish(c, r, S_IOERR)
        elif r.io.kind == IO_DISCARD or r.io.kind == IO_ZERO:
            self.next_segment(c, r)
        else:
            self.finish(c, r, S_OK)

    @cython.cfunc
    @cython.with_gil
    @cython.exceptval(check=False)
    def failed(self, error: cython.int) -> cython.void:
        """Say why the guest sees an I/O error: once for each reason, as its next requests will fail alike."""
        try:
            if self.log is not None:
                why = os.strerror(abs(error))
                self.log(f"{self.name}: the host can't do what the guest asks: {why}; the guest sees an I/O error")
        except Exception:
            pass

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def finish(self, c: cython.pointer(BlkLane), r: cython.pointer(Request), status: uint8_t) -> cython.void:
        chain: cython.pointer(Chain) = r.chain
        chain_write(chain, chain.write_bytes - 1, cython.address(status), 1)
        queue_release(c.q, chain, cython.cast(uint32_t, chain.write_bytes))
        r.next = c.free
        c.free = cython.cast(cython.int, r - c.requests)
        if not c.limited:  # else it goes on when the rate limit lets it, not when something has come back
            c.q.wanted = True

    # Discard and write zeroes: the segments of a request one by one.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def check_segments(self, r: cython.pointer(Request)) -> uint8_t:
        """A status, before anything is changed."""
        segment: Segment
        length: uint64_t = r.chain.read_bytes - cython.sizeof(Header)
        if self.readonly:
            return S_IOERR
        if length == 0 or length % cython.sizeof(Segment) or length > MOST_SEGMENTS * cython.sizeof(Segment):
            return S_IOERR
        r.segment = r.segments = 0
        while r.segments < length // cython.sizeof(Segment):
            status: uint8_t = self.read_segment(r, r.segments, cython.address(segment))
            if status != S_OK:
                return status
            r.segments += 1
        return S_OK

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def read_segment(self, r: cython.pointer(Request), number: uint32_t, s: cython.pointer(Segment)) -> uint8_t:
        at: uint64_t = cython.sizeof(Header) + number * cython.sizeof(Segment)
        chain_read(r.chain, at, s, cython.sizeof(Segment))
        if s.flags & ~cython.cast(uint32_t, 1) or (s.flags and r.type == T_DISCARD):
            return S_UNSUPP
        total: uint64_t = self.size // 512
        if s.sector > total or s.sectors > total - s.sector:
            return S_IOERR
        if s.sectors > cython.cast(uint32_t, MOST_DISCARD_SECTORS if r.type == T_DISCARD else MOST_ZERO_SECTORS):
            return S_IOERR
        return S_OK

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def next_segment(self, c: cython.pointer(BlkLane), r: cython.pointer(Request)) -> cython.void:
        segment: Segment
        while r.segment < r.segments:
            # Read again, so checked again: the guest may have changed it.
            status: uint8_t = self.read_segment(r, r.segment, cython.address(segment))
            r.segment += 1
            if status != S_OK:
                self.finish(c, r, status)
                return
            if segment.sectors == 0:
                continue
            r.io.kind = IO_DISCARD if r.type == T_DISCARD or segment.flags & 1 else IO_ZERO
            r.io.zeroes = r.type == T_WRITE_ZEROES
            r.io.offset = segment.sector * 512
            r.io.left = cython.cast(uint64_t, segment.sectors) * 512
            if not io_begin(c.engine, cython.address(r.io)):
                return
        if self.writeback:
            self.finish(c, r, S_OK)
            return
        r.io.kind = IO_FLUSH
        r.io.left = 0
        io_begin(c.engine, cython.address(r.io))
