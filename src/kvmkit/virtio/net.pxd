from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from kvmkit.net.backend cimport Backend
from kvmkit.net.filter cimport FrameFilter
from kvmkit.net.policy cimport FramePolicy
from kvmkit.virtio.device cimport VirtioDevice
from kvmkit.virtio.lane cimport Lane
from kvmkit.virtio.limit cimport Limit
from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef enum:
    QUEUE = 256
    CONTROL_QUEUE = 64
    MOST_PAIRS = 8
    MOST_MERGED = 64  # buffers one frame may take: what a guest can make us hold is small
    ROUND = 64  # frames each way before the others of a lane have their turn
    HEAD = 128  # bytes of a frame to send that are copied before anything looks at them
    HEADER_BYTES = 12

cdef enum:  # virtio_net_hdr: flags and gso_type, 5.1.6
    NEEDS_CSUM = 1
    GSO_NONE = 0
    GSO_TCPV4 = 1
    GSO_UDP = 3
    GSO_TCPV6 = 4
    GSO_UDP_L4 = 5
    GSO_ECN = 0x80

cdef struct Header:
    uint8_t flags
    uint8_t gso_type
    uint16_t hdr_len
    uint16_t gso_size
    uint16_t csum_start
    uint16_t csum_offset
    uint16_t num_buffers

cdef struct Counters:
    uint64_t frames
    uint64_t bytes
    uint64_t dropped  # malformed, refused, or more than a buffer holds
    uint64_t filtered  # not for this card; of those sent: against its policy

cdef struct Pair:  # a lane's
    int index
    VirtQueue *receiveq
    VirtQueue *transmitq
    Chain *tx
    iovec *iov
    uint8_t head[HEAD]
    Chain *rx[MOST_MERGED]  # buffers taken for the next frame
    uint32_t written[MOST_MERGED]
    int taken
    uint64_t room  # bytes in these
    uint8_t *frame  # one that waits for buffers
    uint64_t length  # 0: there is none
    bint starved  # there were no buffers when one was to be received
    bint blocked  # the backend holds, or refused, what it can't pass on now
    bint limited  # by the rate limit, both ways apart
    bint gone
    int watched  # what the lane polls for
    Counters received
    Counters sent

cdef class Net(VirtioDevice):
    cdef readonly Backend backend
    cdef readonly FrameFilter filter
    cdef readonly FramePolicy policy
    cdef readonly bytes mac
    cdef readonly bytes default_mac
    cdef readonly int mtu
    cdef readonly int pairs  # in use
    cdef readonly int most_pairs
    cdef readonly bint link
    cdef public object lost
    cdef int control_index
    cdef int announcing
    cdef bint mergeable
    cdef uint32_t allowed_flags
    cdef uint32_t allowed_gso
    cdef Limit receive_limit
    cdef list contexts  # addresses of Pair

    cdef bint header_fits(self, const Header *header, uint64_t length) noexcept nogil
    cdef int transmit(self, Pair *p, VirtQueue *q) noexcept nogil
    cdef void serve_transmit(self, Lane lane, Pair *p, VirtQueue *q) noexcept nogil
    cdef bint receive_frames(self, Lane lane, Pair *p) noexcept nogil
    cdef int take_buffers(self, Pair *p, uint64_t need) noexcept nogil
    cdef bint deliver(self, Pair *p) noexcept nogil
    cdef void give_back(self, Pair *p) noexcept nogil
    cdef void watch_backend(self, Lane lane, Pair *p) noexcept nogil
    cdef void lose(self, Pair *p) noexcept nogil
