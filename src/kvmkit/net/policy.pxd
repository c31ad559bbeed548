from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t

cdef enum:
    MOST_RULES = 64
    MOST_ANSWERING = 64

cdef enum:  # what is let through
    EVERYTHING = 0
    NOTHING_AT_ALL = 1
    LISTED = 2

cdef struct Rule:
    uint8_t version  # 4 or 6
    uint8_t prefix  # bits of `address` that count
    uint16_t port  # 0: any, and ICMP
    uint8_t address[16]

cdef struct Policy:
    int kind
    int count
    Rule rules[MOST_RULES]
    int answering
    uint16_t ports[MOST_ANSWERING]  # TCP ports of the guest's that are reached from outside: it may answer

cdef bint policy_allows(const Policy *p, const uint8_t *frame, uint64_t length) noexcept nogil
cdef bint _allows_ip(const Policy *p, int version, const uint8_t *target, int protocol, const uint8_t *rest,
                     uint64_t length) noexcept nogil
cdef bint _stays(int version, const uint8_t *target) noexcept nogil
cdef bint _matches(const Rule *rule, int version, const uint8_t *target, uint32_t port) noexcept nogil

cdef class FramePolicy:
    cdef Policy p
    cdef readonly str text
