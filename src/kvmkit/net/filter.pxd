from libc.stdint cimport uint8_t, uint32_t, uint64_t

cdef enum:
    MOST_ADDRESSES = 64  # of each kind; more are all

cdef struct Filter:
    bint promiscuous
    bint all_multicast
    bint all_unicast
    bint no_multicast
    bint no_unicast
    bint no_broadcast
    bint vlan  # look at tags
    uint8_t mac[6]
    uint32_t unicasts  # of `unicast` that count; above MOST_ADDRESSES: all addresses
    uint32_t multicasts
    uint8_t unicast[6 * MOST_ADDRESSES]
    uint8_t multicast[6 * MOST_ADDRESSES]
    uint8_t vlans[512]  # a bit for each

cdef bint filter_wants(const Filter *f, const uint8_t *frame, uint64_t length) noexcept nogil
cdef bint _listed(const uint8_t *address, const uint8_t *table, uint32_t count) noexcept nogil

cdef class FrameFilter:
    cdef Filter f
    cdef bytes _vlan_state(self)
