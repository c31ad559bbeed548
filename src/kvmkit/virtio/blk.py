"""A disk. Source: virtio 1.2, 5.2.

Each queue has a lane with an io_uring of its own; where the host has none, the lane reads and writes by itself.
"""

import struct

import cython
from cython.cimports.kvmkit.block.uring import (
    IORING_FSYNC_DATASYNC,
    IORING_OP_FSYNC,
    IORING_OP_READ,
    IORING_OP_READV,
    IORING_OP_WRITE,
    IORING_OP_WRITEV,
    io_uring_sqe,
    uring_close,
    uring_has,
    uring_next,
    uring_open,
    uring_submit,
    uring_take,
)
from cython.cimports.kvmkit.virtio.blk import (
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    MOST_DISCARD_SECTORS,
    MOST_SEGMENTS,
    MOST_ZERO_SECTORS,
    QUEUE,
    RWF_DSYNC,
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
    fallocate,
    fdatasync,
    preadv2,
    pwritev2,
)
from cython.cimports.kvmkit.virtio.chain import chain_free, chain_new, chain_read, chain_write, queue_break
from cython.cimports.kvmkit.virtio.lane import POLLIN, Lane
from cython.cimports.kvmkit.virtio.limit import limit_take
from cython.cimports.kvmkit.virtio.queue import queue_get, queue_release
from cython.cimports.kvmkit.virtio.ring import Chain, VirtQueue
from cython.cimports.libc.errno import EAGAIN, EINTR, EINVAL, ENODEV, ENOSYS, EOPNOTSUPP, errno
from cython.cimports.libc.stdint import int32_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.posix.types import off_t
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
    `uring=False` does without io_uring.
    """

    def __init__(self, memory, disk, *, name: str = "disk", serial: str = "", queues: int = 1, uring=True, log=None):
        self.disk = disk
        self.fd = disk.fd
        self.direct_fd = disk.direct_fd
        self.readonly = disk.readonly
        self.size = disk.size
        self.writeback = True
        self.contexts = []
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
        c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), calloc(1, cython.sizeof(BlkLane)))
        if c == cython.NULL:
            raise MemoryError
        self.contexts.append(cython.cast(cython.size_t, c))
        c.ring.fd = -1
        lane.context = c
        c.q = lane.queues[0]
        c.requests = cython.cast(cython.pointer(Request), calloc(SLOTS, cython.sizeof(Request)))
        if c.requests == cython.NULL:
            raise MemoryError
        i: cython.int
        for i in range(SLOTS):
            c.requests[i].chain = chain_new(QUEUE)
            c.requests[i].iov = cython.cast(cython.pointer(iovec), calloc(QUEUE, cython.sizeof(iovec)))
            if c.requests[i].chain == cython.NULL or c.requests[i].iov == cython.NULL:
                raise MemoryError
            c.requests[i].next = i + 1 if i + 1 < SLOTS else -1
        if uring and uring_open(cython.address(c.ring), SLOTS) == 0:
            lane.watch(0, c.ring.fd, POLLIN)

    def __dealloc__(self):
        i: cython.int
        for address in self.contexts or []:
            c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), cython.cast(cython.size_t, address))
            if c.requests != cython.NULL:
                for i in range(SLOTS):
                    chain_free(c.requests[i].chain)
                    free(c.requests[i].iov)
            free(c.requests)
            if c.ring.fd >= 0:
                uring_close(cython.address(c.ring))
            free(c)

    def close(self) -> None:
        VirtioDevice.close(self)
        for address in self.contexts:
            c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), cython.cast(cython.size_t, address))
            if c.ring.fd >= 0:
                uring_close(cython.address(c.ring))
        self.disk.close()

    @property
    def uses_uring(self) -> bool:
        """Each lane has an io_uring."""
        for address in self.contexts:
            c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), cython.cast(cython.size_t, address))
            if c.ring.fd < 0:
                return False
        return True

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
        if c.in_flight == 0 or c.ring.fd < 0 or not uring_has(cython.address(c.ring)):
            return False
        return self.reap(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flush(self, lane: Lane) -> cython.void:
        c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), lane.context)
        if c.in_flight and c.ring.fd >= 0:
            uring_submit(cython.address(c.ring), 0)
            if uring_has(cython.address(c.ring)):  # what was in the page cache is done already
                self.reap(c)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def drain(self, lane: Lane) -> cython.void:
        c: cython.pointer(BlkLane) = cython.cast(cython.pointer(BlkLane), lane.context)
        while c.in_flight:
            uring_submit(cython.address(c.ring), 1)
            self.reap(c)

    # Requests.

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def begin(self, c: cython.pointer(BlkLane), r: cython.pointer(Request)) -> cython.bint:
        """Begin a request. False: it is malformed, and the queue is broken."""
        header: Header
        chain: cython.pointer(Chain) = r.chain
        if chain.read_bytes < cython.sizeof(Header) or chain.write_bytes < 1:
            return queue_break(c.q, "a request without a header or without room for its status")
        chain_read(chain, 0, cython.address(header), cython.sizeof(Header))
        r.type = header.type
        if header.type != T_FLUSH and header.type != T_GET_ID:
            limit_take(cython.address(self.limit), chain.write_bytes + chain.read_bytes - 1 - cython.sizeof(Header))
        if header.type == T_IN or header.type == T_OUT:
            r.left = chain.write_bytes - 1 if header.type == T_IN else chain.read_bytes - cython.sizeof(Header)
            r.offset = header.sector * 512
            # Beyond the disk's end there is nothing to read, and a write would make the file larger.
            if (
                r.left == 0
                or r.left % 512
                or header.sector >= self.size // 512
                or r.left > self.size - r.offset
                or (header.type == T_OUT and self.readonly)
            ):
                self.finish(c, r, S_IOERR)
                return True
            if header.type == T_IN:
                gather(r, chain.readable, chain.count, 0)
            else:
                gather(r, 0, chain.readable, cython.sizeof(Header))
            r.fd = self.direct_fd if self.direct_fd >= 0 and self.aligned(r) else self.fd
            self.submit(c, r)
        elif header.type == T_FLUSH:
            r.left = 0
            r.fd = self.fd
            self.submit(c, r)
        elif header.type == T_GET_ID:
            chain_write(chain, 0, self.serial, min(chain.write_bytes - 1, cython.cast(uint64_t, 20)))
            self.finish(c, r, S_OK)
        elif header.type == T_DISCARD or header.type == T_WRITE_ZEROES:
            self.finish(c, r, self.change(r))
        else:
            self.finish(c, r, S_UNSUPP)
        return True

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

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def aligned(self, r: cython.pointer(Request)) -> cython.bint:
        """Whether direct I/O may do it; some hosts want more, say so (EINVAL), and then the page cache does it."""
        i: uint16_t
        for i in range(r.count):
            if cython.cast(cython.size_t, r.iov[i].iov_base) % 512 or r.iov[i].iov_len % 512:
                return False
        return True

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def flags(self, r: cython.pointer(Request)) -> cython.int:
        return RWF_DSYNC if r.type == T_OUT and not self.writeback else 0

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def submit(self, c: cython.pointer(BlkLane), r: cython.pointer(Request)) -> cython.void:
        """Give what is left of a request to the kernel."""
        if c.ring.fd < 0:
            done: cython.Py_ssize_t
            while True:
                if r.type == T_FLUSH:
                    done = fdatasync(r.fd)
                elif r.type == T_IN:
                    done = preadv2(r.fd, r.iov + r.first, r.count - r.first, r.offset, 0)
                else:
                    done = pwritev2(r.fd, r.iov + r.first, r.count - r.first, r.offset, self.flags(r))
                if done >= 0 or errno != EINTR:
                    break
            c.in_flight += 1
            self.complete(c, r, cython.cast(int32_t, done if done >= 0 else -errno))
            return
        sqe: cython.pointer(io_uring_sqe) = uring_next(cython.address(c.ring))
        while sqe == cython.NULL:  # a resubmission beside a full round
            uring_submit(cython.address(c.ring), 0)
            sqe = uring_next(cython.address(c.ring))
        c.in_flight += 1
        sqe.fd = r.fd
        sqe.user_data = cython.cast(uint64_t, r - c.requests)
        if r.type == T_FLUSH:
            sqe.opcode = IORING_OP_FSYNC
            sqe.fsync_flags = IORING_FSYNC_DATASYNC
            return
        sqe.off = r.offset
        sqe.rw_flags = self.flags(r)
        if r.count - r.first == 1:
            sqe.opcode = IORING_OP_READ if r.type == T_IN else IORING_OP_WRITE
            sqe.addr = cython.cast(uint64_t, r.iov[r.first].iov_base)
            sqe.len = cython.cast(uint32_t, r.iov[r.first].iov_len)
        else:
            sqe.opcode = IORING_OP_READV if r.type == T_IN else IORING_OP_WRITEV
            sqe.addr = cython.cast(uint64_t, r.iov + r.first)
            sqe.len = r.count - r.first

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def complete(self, c: cython.pointer(BlkLane), r: cython.pointer(Request), result: int32_t) -> cython.void:
        """The kernel is through with a request, or a part of it."""
        c.in_flight -= 1
        if result == -EINTR or result == -EAGAIN:
            self.submit(c, r)
        elif result == -EINVAL and r.fd != self.fd:
            r.fd = self.fd
            self.submit(c, r)
        elif result < 0 or (result == 0 and r.left):  # 0: somebody made the file smaller
            self.finish(c, r, S_IOERR)
        elif cython.cast(uint64_t, result) < r.left:
            advance(r, cython.cast(uint64_t, result))
            if not self.aligned(r):
                r.fd = self.fd
            self.submit(c, r)
        else:
            self.finish(c, r, S_OK)

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def reap(self, c: cython.pointer(BlkLane)) -> cython.bint:
        number: uint64_t
        result: int32_t
        any_: cython.bint = False
        while uring_take(cython.address(c.ring), cython.address(number), cython.address(result)):
            self.complete(c, cython.address(c.requests[number]), result)
            any_ = True
        return any_

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def change(self, r: cython.pointer(Request)) -> uint8_t:
        """Discard or write zeroes, of which file systems make quick work; so the lane itself does it. The status."""
        segments: Segment[MOST_SEGMENTS]
        length: uint64_t = r.chain.read_bytes - cython.sizeof(Header)
        if self.readonly:
            return S_IOERR
        if length == 0 or length % cython.sizeof(Segment) or length > MOST_SEGMENTS * cython.sizeof(Segment):
            return S_IOERR
        chain_read(r.chain, cython.sizeof(Header), segments, length)
        i: cython.int
        for i in range(cython.cast(cython.int, length // cython.sizeof(Segment))):
            status: uint8_t = self.change_one(r.type, cython.address(segments[i]))
            if status != S_OK:
                return status
        if not self.writeback and fdatasync(self.fd) < 0:
            return S_IOERR
        return S_OK

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def change_one(self, type: uint32_t, s: cython.pointer(Segment)) -> uint8_t:
        zeroes: uint8_t[4096]
        at: uint64_t
        if s.flags & ~cython.cast(uint32_t, 1) or (s.flags and type == T_DISCARD):
            return S_UNSUPP
        total: uint64_t = self.size // 512
        if s.sector > total or s.sectors > total - s.sector:
            return S_IOERR
        if s.sectors > cython.cast(uint32_t, MOST_DISCARD_SECTORS if type == T_DISCARD else MOST_ZERO_SECTORS):
            return S_IOERR
        if s.sectors == 0:
            return S_OK
        start: uint64_t = s.sector * 512
        length: uint64_t = cython.cast(uint64_t, s.sectors) * 512
        how: cython.int = FALLOC_FL_PUNCH_HOLE if type == T_DISCARD or s.flags & 1 else FALLOC_FL_ZERO_RANGE
        if fallocate(self.fd, how | FALLOC_FL_KEEP_SIZE, start, length) == 0:
            return S_OK
        if errno != EOPNOTSUPP and errno != ENOSYS and errno != ENODEV and errno != EINVAL:
            return S_IOERR
        if type == T_DISCARD:
            return S_OK  # it is a hint
        i: cython.int
        for i in range(4096):
            zeroes[i] = 0
        part: iovec
        at = start
        while at < start + length:
            part.iov_base = zeroes
            part.iov_len = min(cython.cast(uint64_t, 4096), start + length - at)
            done: cython.Py_ssize_t = pwritev2(self.fd, cython.address(part), 1, cython.cast(off_t, at), 0)
            if done < 0 and errno == EINTR:
                continue
            if done <= 0:
                return S_IOERR
            at += done
        return S_OK


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def gather(r: cython.pointer(Request), first: uint16_t, end: uint16_t, skip: uint64_t) -> cython.bint:
    """Set `iov` to `left` bytes of the chain's segments [first, end), without the first `skip`."""
    left: uint64_t = r.left
    r.first = r.count = 0
    i: uint16_t
    for i in range(first, end):
        size: uint64_t = r.chain.iov[i].iov_len
        if skip >= size:
            skip -= size
            continue
        part: uint64_t = min(size - skip, left)
        if part == 0:
            break
        r.iov[r.count].iov_base = cython.cast(cython.pointer(uint8_t), r.chain.iov[i].iov_base) + skip
        r.iov[r.count].iov_len = part
        r.count += 1
        left -= part
        skip = 0
    return left == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def advance(r: cython.pointer(Request), done: uint64_t) -> cython.void:
    """The first `done` bytes are through."""
    r.offset += done
    r.left -= done
    while done:
        part: uint64_t = min(done, cython.cast(uint64_t, r.iov[r.first].iov_len))
        r.iov[r.first].iov_base = cython.cast(cython.pointer(uint8_t), r.iov[r.first].iov_base) + part
        r.iov[r.first].iov_len -= part
        if r.iov[r.first].iov_len == 0:
            r.first += 1
        done -= part
