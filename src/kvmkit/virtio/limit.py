"""Rate limits: token buckets for bytes and operations.

A request may begin when neither bucket is in debt, and may put one into it: so requests of any size get through, and
on average no more than the rate.
"""

import cython
from cython.cimports.kvmkit.accel.tcg.threads import monotonic
from cython.cimports.kvmkit.memory.atomics import ACQUIRE, RELEASE, exchange32, store32
from cython.cimports.kvmkit.virtio.lane import cpu_pause
from cython.cimports.kvmkit.virtio.limit import Bucket, Limit
from cython.cimports.libc.stdint import int64_t, uint64_t


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def bucket_set(b: cython.pointer(Bucket), rate: cython.double, burst: cython.double) -> cython.void:
    b.rate = rate
    b.burst = burst
    b.level = burst
    b.at = monotonic()


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def limit_lock(limit: cython.pointer(Limit)) -> cython.void:
    """A spin lock: it is held for some nanoseconds, by lanes of one device."""
    while exchange32(cython.address(limit.lock), 1, ACQUIRE):
        cpu_pause()


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def limit_set(
    limit: cython.pointer(Limit),
    bytes: cython.double,
    byte_burst: cython.double,
    operations: cython.double,
    operation_burst: cython.double,
) -> cython.void:
    """New rates (a second; 0: none) and bursts; the buckets are full."""
    limit_lock(limit)
    bucket_set(cython.address(limit.bytes), bytes, byte_burst)
    bucket_set(cython.address(limit.operations), operations, operation_burst)
    store32(cython.address(limit.lock), 0, RELEASE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def bucket_wait(b: cython.pointer(Bucket), now: int64_t) -> int64_t:
    if b.rate <= 0:
        return 0
    b.level = min(b.burst, b.level + b.rate * cython.cast(cython.double, now - b.at) * 1e-9)
    b.at = now
    if b.level > 0:
        return 0
    return cython.cast(int64_t, min((1 - b.level) / b.rate, 3600.0) * 1e9) + 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def limit_wait(limit: cython.pointer(Limit)) -> int64_t:
    """In how many nanoseconds the next request may begin; 0: now."""
    if limit.bytes.rate <= 0 and limit.operations.rate <= 0:
        return 0
    limit_lock(limit)
    now: int64_t = monotonic()
    wait: int64_t = max(
        bucket_wait(cython.address(limit.bytes), now), bucket_wait(cython.address(limit.operations), now)
    )
    store32(cython.address(limit.lock), 0, RELEASE)
    return wait


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def limit_take(limit: cython.pointer(Limit), bytes: uint64_t) -> cython.void:
    """A request of so many bytes has begun."""
    if limit.bytes.rate <= 0 and limit.operations.rate <= 0:
        return
    limit_lock(limit)
    limit.bytes.level -= cython.cast(cython.double, bytes)
    limit.operations.level -= 1
    store32(cython.address(limit.lock), 0, RELEASE)
