from libc.stdint cimport int64_t, uint8_t, uint64_t
from posix.uio cimport iovec

cdef enum:
    MOST_FRAME = 65553  # bytes: an IP packet of the largest size behind an Ethernet header with a VLAN tag
    LEAST_FRAME = 14
    HEADER = 12  # struct virtio_net_hdr_v1

cdef enum:  # what became of a frame to send
    SENT = 1
    FULL = 0  # try again when the descriptor is writable
    DROPPED = -1

cdef enum:  # beside a frame's length
    NOTHING = 0
    GONE = -1

cdef class Backend:
    cdef readonly str name
    cdef readonly int pairs
    cdef readonly int header
    cdef readonly int offloads
    cdef readonly str failure
    cdef object kept

    # All on the thread of the pair's lane, without the GIL.
    cdef int descriptor(self, int pair) noexcept nogil
    cdef int send(self, int pair, const iovec *iov, int count, uint64_t length) noexcept nogil
    cdef bint flush(self, int pair) noexcept nogil
    cdef int64_t receive(self, int pair, uint8_t **frame) noexcept nogil
