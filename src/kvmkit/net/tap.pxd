from libc.stdint cimport uint8_t, uint64_t
from posix.uio cimport iovec

from kvmkit.net.backend cimport Backend

cdef enum:
    MOST_TAP_PAIRS = 8

cdef class TapBackend(Backend):
    cdef int fds[MOST_TAP_PAIRS]
    cdef uint8_t *buffers[MOST_TAP_PAIRS]
    cdef readonly int mtu
    cdef int attached
