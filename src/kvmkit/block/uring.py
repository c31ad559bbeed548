"""io_uring by its raw system calls. Source: io_uring(7), io_uring_setup(2), io_uring_enter(2)."""

import cython
from cython.cimports.kvmkit.block.uring import (
    IORING_ENTER_GETEVENTS,
    IORING_FEAT_NODROP,
    IORING_FEAT_SINGLE_MMAP,
    IORING_OFF_SQ_RING,
    IORING_OFF_SQES,
    SYS_io_uring_enter,
    SYS_io_uring_setup,
    Uring,
    io_uring_cqe,
    io_uring_params,
    io_uring_sqe,
    syscall,
)
from cython.cimports.kvmkit.memory.atomics import ACQUIRE, RELAXED, RELEASE, load32, store32
from cython.cimports.libc.errno import EINTR, ENOSYS, errno
from cython.cimports.libc.stdint import int32_t, uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memset
from cython.cimports.posix.mman import MAP_FAILED, MAP_POPULATE, MAP_SHARED, PROT_READ, PROT_WRITE, mmap, munmap
from cython.cimports.posix.unistd import close


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uring_open(u: cython.pointer(Uring), entries: uint32_t) -> cython.int:
    """A ring of `entries` (a power of two) submissions and twice as many completions. 0, or minus an errno."""
    p: io_uring_params
    memset(u, 0, cython.sizeof(Uring))
    memset(cython.address(p), 0, cython.sizeof(p))
    u.fd = cython.cast(cython.int, syscall(SYS_io_uring_setup, entries, cython.address(p)))
    if u.fd < 0:
        return -errno
    if not p.features & IORING_FEAT_SINGLE_MMAP or not p.features & IORING_FEAT_NODROP:  # before Linux 5.5
        close(u.fd)
        u.fd = -1
        return -ENOSYS
    u.ring_bytes = max(
        p.sq_off.array + p.sq_entries * cython.sizeof(uint32_t),
        p.cq_off.cqes + p.cq_entries * cython.sizeof(io_uring_cqe),
    )
    u.sqes_bytes = p.sq_entries * cython.sizeof(io_uring_sqe)
    flags: cython.int = MAP_SHARED | MAP_POPULATE
    ring: cython.p_void = mmap(cython.NULL, u.ring_bytes, PROT_READ | PROT_WRITE, flags, u.fd, IORING_OFF_SQ_RING)
    sqes: cython.p_void = mmap(cython.NULL, u.sqes_bytes, PROT_READ | PROT_WRITE, flags, u.fd, IORING_OFF_SQES)
    if ring != MAP_FAILED:
        u.ring = cython.cast(cython.pointer(uint8_t), ring)
    if sqes != MAP_FAILED:
        u.sqes = cython.cast(cython.pointer(io_uring_sqe), sqes)
    if u.ring == cython.NULL or u.sqes == cython.NULL:
        failed: cython.int = -errno
        uring_close(u)
        return failed
    u.entries = p.sq_entries
    u.sq_head = cython.cast(cython.pointer(uint32_t), u.ring + p.sq_off.head)
    u.sq_tail = cython.cast(cython.pointer(uint32_t), u.ring + p.sq_off.tail)
    u.sq_array = cython.cast(cython.pointer(uint32_t), u.ring + p.sq_off.array)
    u.sq_mask = load32(u.ring + p.sq_off.ring_mask, RELAXED)
    u.cq_head = cython.cast(cython.pointer(uint32_t), u.ring + p.cq_off.head)
    u.cq_tail = cython.cast(cython.pointer(uint32_t), u.ring + p.cq_off.tail)
    u.cq_mask = load32(u.ring + p.cq_off.ring_mask, RELAXED)
    u.cqes = cython.cast(cython.pointer(io_uring_cqe), u.ring + p.cq_off.cqes)
    return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uring_close(u: cython.pointer(Uring)) -> cython.void:
    if u.sqes != cython.NULL:
        munmap(u.sqes, u.sqes_bytes)
    if u.ring != cython.NULL:
        munmap(u.ring, u.ring_bytes)
    if u.fd >= 0:
        close(u.fd)
    u.sqes = cython.NULL
    u.ring = cython.NULL
    u.fd = -1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uring_next(u: cython.pointer(Uring)) -> cython.pointer(io_uring_sqe):
    """The next submission, all zeros, to be filled in; NULL: `uring_submit` first."""
    if u.tail - load32(u.sq_head, ACQUIRE) >= u.entries:
        return cython.NULL
    i: uint32_t = u.tail & u.sq_mask
    u.sq_array[i] = i
    u.tail += 1
    memset(cython.address(u.sqes[i]), 0, cython.sizeof(io_uring_sqe))
    return cython.address(u.sqes[i])


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uring_submit(u: cython.pointer(Uring), wait: uint32_t) -> cython.int:
    """Give all to the kernel, and wait for `wait` completions. 0, or minus an errno: try again later."""
    store32(u.sq_tail, u.tail, RELEASE)
    while True:
        waiting: uint32_t = u.tail - load32(u.sq_head, ACQUIRE)
        if waiting == 0 and wait == 0:
            return 0
        got: cython.long = syscall(
            SYS_io_uring_enter, u.fd, waiting, wait, IORING_ENTER_GETEVENTS if wait else 0, cython.NULL, 0
        )
        if got < 0 and errno == EINTR:
            continue
        if got < 0:
            return -errno
        if u.tail == load32(u.sq_head, ACQUIRE):
            return 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uring_has(u: cython.pointer(Uring)) -> cython.bint:
    """A completion waits."""
    return load32(u.cq_head, RELAXED) != load32(u.cq_tail, ACQUIRE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def uring_take(
    u: cython.pointer(Uring), user_data: cython.pointer(uint64_t), result: cython.pointer(int32_t)
) -> cython.bint:
    """Take a completion. False: there is none."""
    head: uint32_t = load32(u.cq_head, RELAXED)
    if head == load32(u.cq_tail, ACQUIRE):
        return False
    done: cython.pointer(io_uring_cqe) = cython.address(u.cqes[head & u.cq_mask])
    user_data[0] = done.user_data
    result[0] = done.res
    store32(u.cq_head, head + 1, RELEASE)
    return True
