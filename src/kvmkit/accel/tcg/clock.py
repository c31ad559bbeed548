"""Arithmetic of clocks. Time is CLOCK_MONOTONIC in ns; INT64_MAX means never, and no sum passes it."""

import cython
from cython.cimports.libc.stdint import INT64_MAX, int64_t, uint32_t, uint64_t


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def later(now: int64_t, delta: int64_t) -> int64_t:
    """`now + delta`, or never when that is past the end of time. `delta` is not negative."""
    if now > 0 and delta > INT64_MAX - now:
        return INT64_MAX
    return now + delta


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def scale(ticks: uint64_t, hz: uint32_t, per: uint32_t) -> int64_t:
    """How many units of 1/`per` s `ticks` of a clock of `hz` take, rounded up: at that time they have all passed."""
    whole: uint64_t = ticks // hz
    if whole >= cython.cast(uint64_t, INT64_MAX) // per:
        return INT64_MAX
    return cython.cast(int64_t, whole * per + (ticks % hz * per + hz - 1) // hz)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def ticks_in(ns: int64_t, hz: uint32_t) -> uint64_t:
    """Whole ticks of a clock of `hz` in `ns`; none in a negative time."""
    if ns <= 0:
        return 0
    elapsed: uint64_t = ns
    return elapsed // 1000000000 * hz + elapsed % 1000000000 * hz // 1000000000
