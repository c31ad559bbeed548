"""Operations on a disk: begun by a lane, done by io_uring or by a few threads, taken back when they are whole.

A lane's round: `io_begin` for each operation (True: it is done already), `io_flush`, and `io_take` while `io_has`.
What needs several tries (short reads, alignment that direct I/O does not like, zeros where a file system can't make
any) is one operation for the owner.

A write through the page cache is tried by the lane itself first: most file systems make io_uring give it to a kernel
thread, and waking that costs more than the copy. A lane that was kept by one hands writes on for a while.
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
from cython.cimports.kvmkit.block.uring import (
    IORING_FSYNC_DATASYNC,
    IORING_OP_FALLOCATE,
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
from cython.cimports.kvmkit.block.work import (
    BOUNCE_ALIGN,
    BOUNCE_MOST,
    DISTRUST_NS,
    FALLOC_FL_KEEP_SIZE,
    FALLOC_FL_PUNCH_HOLE,
    FALLOC_FL_ZERO_RANGE,
    IO_DISCARD,
    IO_FLUSH,
    IO_READ,
    IO_WRITE,
    POLLIN,
    POOL_THREADS,
    RWF_DSYNC,
    RWF_NOWAIT,
    SLOW_NS,
    ZEROS,
    Engine,
    Io,
    Pool,
    fallocate,
    fdatasync,
    poll,
    pollfd,
    posix_memalign,
    preadv2,
    pwritev2,
)
from cython.cimports.kvmkit.memory.atomics import ACQUIRE, RELEASE, load32, store32
from cython.cimports.libc.errno import EAGAIN, EINTR, EINVAL, EIO, ENODEV, ENOSYS, EOPNOTSUPP, errno
from cython.cimports.libc.stdint import int32_t, int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import free
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.types import off_t
from cython.cimports.posix.unistd import read, write

STACK_BYTES: int = 1 << 17
_zeros = cython.declare(uint8_t[ZEROS])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_fits(io: cython.pointer(cython.const[Io])) -> cython.bint:
    """What is left may go past the page cache as it is."""
    i: uint16_t
    for i in range(io.rest):
        if cython.cast(cython.size_t, io.at[i].iov_base) % io.align or io.at[i].iov_len % io.align:
            return False
    return io.offset % io.align == 0 and io.left % io.align == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_aim(io: cython.pointer(Io)) -> cython.void:
    """Choose between the page cache, direct I/O, and direct I/O to a buffer of ours that is aligned."""
    where: cython.p_void = cython.NULL
    done: uint64_t = 0
    i: uint16_t
    io.error = 0
    io.zeroing = False
    io.bounce = cython.NULL
    io.at = io.iov
    io.rest = io.count
    io.total = io.left
    io.using = io.fd
    if io.direct_fd < 0 or io.kind > IO_WRITE or io.left == 0:
        return
    if io_fits(io):
        io.using = io.direct_fd
        return
    # A place or a length that is no multiple would have us read first, and others could write meanwhile.
    if io.offset % io.align or io.left % io.align or io.left > BOUNCE_MOST:
        return
    if posix_memalign(cython.address(where), BOUNCE_ALIGN, io.left) != 0:
        return
    if io.kind == IO_WRITE:
        for i in range(io.count):
            memcpy(cython.cast(cython.pointer(uint8_t), where) + done, io.iov[i].iov_base, io.iov[i].iov_len)
            done += io.iov[i].iov_len
    io.bounce = where
    io.own.iov_base = where
    io.own.iov_len = io.left
    io.lent = io.iov
    io.at = cython.address(io.own)
    io.rest = 1
    io.using = io.direct_fd


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_end(io: cython.pointer(Io)) -> cython.void:
    """Give the bounce buffer back, with what was read in it where that belongs."""
    done: uint64_t = 0
    i: uint16_t
    if io.bounce == cython.NULL:
        return
    if io.kind == IO_READ and io.error == 0:
        for i in range(io.count):
            memcpy(io.lent[i].iov_base, cython.cast(cython.pointer(uint8_t), io.bounce) + done, io.lent[i].iov_len)
            done += io.lent[i].iov_len
    free(io.bounce)
    io.bounce = cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_change(io: cython.pointer(cython.const[Io])) -> cython.int:
    """fallocate's mode."""
    return FALLOC_FL_KEEP_SIZE | (FALLOC_FL_PUNCH_HOLE if io.kind == IO_DISCARD else FALLOC_FL_ZERO_RANGE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_begin_zeroing(io: cython.pointer(Io)) -> cython.bint:
    """Zeros have to be written out: the next part of them. Always False."""
    io.zeroing = True
    io.own.iov_base = cython.address(_zeros[0])
    io.own.iov_len = min(io.left, cython.cast(uint64_t, ZEROS))
    io.at = cython.address(io.own)
    io.rest = 1
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_step(io: cython.pointer(Io), result: int64_t) -> cython.bint:
    """A system call's result, or minus an errno. True: the operation has ended; False: do what is left."""
    part: uint64_t
    done: uint64_t
    if result == -EINTR or result == -EAGAIN:
        return False
    if result < 0 and io.using != io.fd:
        if result != -EINVAL:
            io.error = cython.cast(cython.int, -result)
            return True
        io.using = io.fd  # the host wants more of direct I/O than it says
        return False
    if io.kind >= IO_DISCARD and not io.zeroing:
        if result >= 0:
            return True
        if result != -EOPNOTSUPP and result != -ENOSYS and result != -ENODEV and result != -EINVAL:
            io.error = cython.cast(cython.int, -result)
            return True
        if io.kind == IO_DISCARD and not io.zeroes:
            return True  # it is a hint
        return io_begin_zeroing(io)
    if result < 0 or io.kind == IO_FLUSH:
        io.error = cython.cast(cython.int, -result if result < 0 else 0)
        return True
    if result == 0 and io.left:  # somebody made the file smaller
        io.error = EIO
        return True
    done = cython.cast(uint64_t, result)
    io.offset += done
    io.left -= done
    if io.left == 0:
        return True
    if io.zeroing:
        return io_begin_zeroing(io)
    while done:
        part = min(done, cython.cast(uint64_t, io.at.iov_len))
        io.at.iov_base = cython.cast(cython.pointer(uint8_t), io.at.iov_base) + part
        io.at.iov_len -= part
        if io.at.iov_len == 0:
            io.at += 1
            io.rest -= 1
        done -= part
    if io.using != io.fd and not io_fits(io):
        io.using = io.fd
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_do(io: cython.pointer(Io)) -> int64_t:
    """One system call for what is left: its result, or minus an errno."""
    result: int64_t
    if io.kind == IO_FLUSH:
        result = fdatasync(io.fd)
    elif io.kind == IO_READ:
        result = preadv2(io.using, io.at, io.rest, cython.cast(off_t, io.offset), 0)
    elif io.kind == IO_WRITE or io.zeroing:
        result = pwritev2(io.using, io.at, io.rest, cython.cast(off_t, io.offset), RWF_DSYNC if io.durable else 0)
    else:
        result = fallocate(io.fd, io_change(io), cython.cast(off_t, io.offset), cython.cast(off_t, io.left))
    return result if result >= 0 else -errno


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_inline(e: cython.pointer(Engine), io: cython.pointer(Io)) -> cython.bint:
    """Do it now, where that does not keep the lane. True: it has ended."""
    result: int64_t
    began: int64_t
    ended: int64_t
    if io.using != io.fd:
        return False
    if io.kind == IO_WRITE and not io.durable:
        began = monotonic()
        if began < e.slow_until:
            return False
        result = pwritev2(io.fd, io.at, io.rest, cython.cast(off_t, io.offset), 0)
        if result < 0:
            result = -errno
        ended = monotonic()
        if ended - began > SLOW_NS:
            e.slow_until = ended + DISTRUST_NS
        return io_step(io, result)
    if io.kind == IO_READ and e.pool != cython.NULL:  # io_uring tries that by itself
        result = preadv2(io.fd, io.at, io.rest, cython.cast(off_t, io.offset), RWF_NOWAIT)
        return result > 0 and io_step(io, result)
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_begin(e: cython.pointer(Engine), io: cython.pointer(Io)) -> cython.bint:
    """Begin an operation. True: it has ended, see `error`. False: `io_take` gives it back."""
    io_aim(io)
    io.engine = e
    if io_inline(e, io):
        io_end(io)
        return True
    e.in_flight += 1
    io_submit(e, io)
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_submit(e: cython.pointer(Engine), io: cython.pointer(Io)) -> cython.void:
    if e.pool != cython.NULL:
        io.next = cython.NULL
        pthread_mutex_lock(cython.address(e.pool.mutex))
        if e.pool.first == cython.NULL:
            e.pool.first = io
        else:
            e.pool.last.next = io
        e.pool.last = io
        pthread_cond_signal(cython.address(e.pool.work))
        pthread_mutex_unlock(cython.address(e.pool.mutex))
        return
    sqe: cython.pointer(io_uring_sqe) = uring_next(cython.address(e.ring))
    while sqe == cython.NULL:  # a resubmission beside a full round
        uring_submit(cython.address(e.ring), 0)
        sqe = uring_next(cython.address(e.ring))
    sqe.fd = io.using
    sqe.user_data = cython.cast(uint64_t, io)
    if io.kind == IO_FLUSH:
        sqe.opcode = IORING_OP_FSYNC
        sqe.fsync_flags = IORING_FSYNC_DATASYNC
        return
    sqe.off = io.offset
    if io.kind >= IO_DISCARD and not io.zeroing:
        sqe.opcode = IORING_OP_FALLOCATE
        sqe.addr = io.left
        sqe.len = io_change(io)
        return
    sqe.rw_flags = RWF_DSYNC if io.durable and io.kind != IO_READ else 0
    if io.rest == 1:
        sqe.opcode = IORING_OP_READ if io.kind == IO_READ else IORING_OP_WRITE
        sqe.addr = cython.cast(uint64_t, io.at.iov_base)
        sqe.len = cython.cast(uint32_t, io.at.iov_len)
    else:
        sqe.opcode = IORING_OP_READV if io.kind == IO_READ else IORING_OP_WRITEV
        sqe.addr = cython.cast(uint64_t, io.at)
        sqe.len = io.rest


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_flush(e: cython.pointer(Engine)) -> cython.void:
    """Give what was begun to the kernel."""
    if e.pool == cython.NULL:
        uring_submit(cython.address(e.ring), 0)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_has(e: cython.pointer(Engine)) -> cython.bint:
    """There may be something to take. Cheap."""
    if e.pool != cython.NULL:
        return load32(cython.address(e.finished), ACQUIRE) != 0
    return uring_has(cython.address(e.ring))


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_take(e: cython.pointer(Engine)) -> cython.pointer(Io):
    """An operation that has ended; NULL: none has."""
    data: uint64_t
    result: int32_t
    io: cython.pointer(Io)
    if e.pool != cython.NULL:
        pthread_mutex_lock(cython.address(e.pool.mutex))
        io = e.done
        if io != cython.NULL:
            e.done = io.next
        if e.done == cython.NULL:
            store32(cython.address(e.finished), 0, RELEASE)
        pthread_mutex_unlock(cython.address(e.pool.mutex))
        if io != cython.NULL:
            e.in_flight -= 1
        return io
    while uring_take(cython.address(e.ring), cython.address(data), cython.address(result)):
        io = cython.cast(cython.pointer(Io), data)
        if io_step(io, result):
            e.in_flight -= 1
            io_end(io)
            return io
        io_submit(e, io)
    return cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_awake(e: cython.pointer(Engine)) -> cython.void:
    """The descriptor fired: it is not to fire again for the same."""
    value: uint64_t
    if e.pool != cython.NULL:
        read(e.event, cython.address(value), 8)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def io_wait(e: cython.pointer(Engine)) -> cython.void:
    """Wait until `io_take` may have something; something must be in flight."""
    ready: pollfd
    if e.pool == cython.NULL:
        if not uring_has(cython.address(e.ring)):
            uring_submit(cython.address(e.ring), 1)
        return
    while not io_has(e):
        ready.fd = e.event
        ready.events = POLLIN
        poll(cython.address(ready), 1, -1)
        io_awake(e)


@cython.cclass
class Worker:
    """Does one lane's operations, `entries` at a time. With `uring` False, or where the host has none, threads do them.

    `close` when nothing is in flight.
    """

    def __cinit__(self, entries: int, uring: bool = True):
        self.threads = []
        self.engine.event = -1
        self.engine.ring.fd = -1
        pthread_mutex_init(cython.address(self.pool.mutex), cython.NULL)
        pthread_cond_init(cython.address(self.pool.work), cython.NULL)
        self.uses_uring = bool(uring) and uring_open(cython.address(self.engine.ring), entries) == 0
        if self.uses_uring:
            return
        self.engine.ring.fd = -1
        self.engine.event = os.eventfd(0, os.EFD_NONBLOCK | os.EFD_CLOEXEC)
        self.engine.pool = cython.address(self.pool)
        before = threading.stack_size(STACK_BYTES)
        try:
            for number in range(POOL_THREADS):
                thread = threading.Thread(target=self._main, name=f"disk I/O {number}", daemon=True)
                thread.start()
                self.threads.append(thread)
        finally:
            threading.stack_size(before)

    def __dealloc__(self):
        if self.engine.ring.fd >= 0:
            uring_close(cython.address(self.engine.ring))
        if self.engine.event >= 0:
            os.close(self.engine.event)
        pthread_mutex_destroy(cython.address(self.pool.mutex))
        pthread_cond_destroy(cython.address(self.pool.work))

    def close(self) -> None:
        """End its threads."""
        threads, self.threads = self.threads, []
        if threads:
            with cython.nogil:
                pthread_mutex_lock(cython.address(self.pool.mutex))
                self.pool.ending = True
                pthread_cond_signal(cython.address(self.pool.work))
                pthread_mutex_unlock(cython.address(self.pool.mutex))
            for thread in threads:
                thread.join()
        if self.engine.ring.fd >= 0:
            uring_close(cython.address(self.engine.ring))

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def descriptor(self) -> cython.int:
        """Becomes readable when there is something to take."""
        return self.engine.event if self.engine.pool != cython.NULL else self.engine.ring.fd

    def _main(self) -> None:
        with cython.nogil:
            self.labour()

    @cython.cfunc
    @cython.nogil
    @cython.exceptval(check=False)
    def labour(self) -> cython.void:
        one: uint64_t = 1
        io: cython.pointer(Io)
        pool: cython.pointer(Pool) = cython.address(self.pool)
        pthread_mutex_lock(cython.address(pool.mutex))
        while True:
            while pool.first == cython.NULL and not pool.ending:
                pthread_cond_wait(cython.address(pool.work), cython.address(pool.mutex))
            if pool.first == cython.NULL:
                pthread_cond_signal(cython.address(pool.work))  # the next one ends, too
                pthread_mutex_unlock(cython.address(pool.mutex))
                return
            io = pool.first
            pool.first = io.next
            pthread_mutex_unlock(cython.address(pool.mutex))
            while not io_step(io, io_do(io)):
                pass
            io_end(io)
            e: cython.pointer(Engine) = io.engine
            pthread_mutex_lock(cython.address(pool.mutex))
            io.next = e.done
            e.done = io
            if io.next == cython.NULL:
                store32(cython.address(e.finished), 1, RELEASE)
                write(e.event, cython.address(one), 8)
