"""Packed virtqueues: one ring, in which descriptors become available and used in place. Source: virtio 1.2, 2.8."""

import cython
from cython.cimports.kvmkit.memory.ram import ram_pointer
from cython.cimports.kvmkit.virtio.chain import chain_add, chain_add_table, chain_clear, queue_break
from cython.cimports.kvmkit.virtio.ring import (
    ACQUIRE,
    DESC_AVAIL,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_USED,
    DESC_WRITE,
    EVENTS_AT,
    EVENTS_OFF,
    EVENTS_ON,
    RELAXED,
    RELEASE,
    Chain,
    VirtQueue,
    load16,
    load64,
    store16,
    store32,
)
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packed_map(q: cython.pointer(VirtQueue)) -> cython.bint:
    """Find the ring and the two event structures in memory. False: they are not all there, or not aligned."""
    if q.desc_address % 16 or q.driver_address % 4 or q.device_address % 4:
        return False
    q.desc = ram_pointer(q.ram, q.desc_address, 16 * cython.cast(uint64_t, q.size))
    q.driver = ram_pointer(q.ram, q.driver_address, 4)
    q.device = ram_pointer(q.ram, q.device_address, 4)
    return q.desc != cython.NULL and q.driver != cython.NULL and q.device != cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packed_quiet(q: cython.pointer(VirtQueue)) -> cython.void:
    """Tell the driver that it need not ring."""
    store16(q.device + 2, EVENTS_OFF, RELAXED)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packed_loud(q: cython.pointer(VirtQueue)) -> cython.void:
    """Ask for a ring at the next chain."""
    if q.event_index:
        store16(q.device, q.next_avail | (0x8000 if q.avail_wrap else 0), RELAXED)
        store16(q.device + 2, EVENTS_AT, RELEASE)
    else:
        store16(q.device + 2, EVENTS_ON, RELAXED)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packed_has(q: cython.pointer(VirtQueue)) -> cython.bint:
    flags: uint16_t = load16(q.desc + 16 * cython.cast(uint64_t, q.next_avail) + 14, ACQUIRE)
    available: cython.bint = (flags & DESC_AVAIL) != 0
    used: cython.bint = (flags & DESC_USED) != 0
    return available == q.avail_wrap and used != q.avail_wrap


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packed_get(q: cython.pointer(VirtQueue), chain: cython.pointer(Chain)) -> cython.int:
    """Take the next chain: 1; there is none: 0; the queue is broken: -1."""
    if not packed_has(q):
        return 0
    i: uint16_t = q.next_avail
    wrap: cython.bint = q.avail_wrap
    chain_clear(chain)
    while True:
        # A chain of NEXT flags all around the ring has no end.
        if chain.slots >= q.size - q.busy:
            queue_break(q, "a chain takes more places than the ring has free")
            return -1
        # Each descriptor is read once: the guest may change it between a check and a use.
        where: uint64_t = load64(q.desc + 16 * cython.cast(uint64_t, i), RELAXED)
        rest: uint64_t = load64(q.desc + 16 * cython.cast(uint64_t, i) + 8, RELAXED)
        flags: uint16_t = cython.cast(uint16_t, rest >> 48)
        chain.slots += 1
        chain.id = cython.cast(uint16_t, rest >> 32)
        i += 1
        if i >= q.size:
            i = 0
            wrap = not wrap
        if flags & DESC_INDIRECT:
            if flags & DESC_NEXT or chain.slots > 1:
                queue_break(q, "an indirect descriptor in a chain")
                return -1
            if not chain_add_table(q, chain, where, cython.cast(uint32_t, rest)):
                return -1
            break
        if not chain_add(q, chain, where, cython.cast(uint32_t, rest), flags & DESC_WRITE):
            return -1
        if not flags & DESC_NEXT:
            break
    q.next_avail = i
    q.avail_wrap = wrap
    q.busy += chain.slots
    return 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packed_fill(q: cython.pointer(VirtQueue), id: uint16_t, slots: uint16_t, written: uint32_t) -> uint16_t:
    """Write a chain's place as used, but for its flags, by which the driver sees it; these. It takes as many places in
    the ring as it had."""
    place: cython.pointer(uint8_t) = q.desc + 16 * cython.cast(uint64_t, q.next_used)
    flags: uint16_t = (DESC_AVAIL | DESC_USED) if q.used_wrap else 0
    if written:
        flags |= DESC_WRITE
    store32(place + 8, written, RELAXED)
    store16(place + 12, id, RELAXED)
    q.busy -= slots
    q.next_used += slots
    if q.next_used >= q.size:
        q.next_used -= q.size
        q.used_wrap = not q.used_wrap
    q.unsignalled += slots
    return flags


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packed_put(q: cython.pointer(VirtQueue), id: uint16_t, slots: uint16_t, written: uint32_t) -> cython.void:
    """Give a chain back."""
    place: cython.pointer(uint8_t) = q.desc + 16 * cython.cast(uint64_t, q.next_used)
    flags: uint16_t = packed_fill(q, id, slots, written)
    store16(place + 14, flags, RELEASE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packed_put_together(
    q: cython.pointer(VirtQueue),
    chains: cython.pointer(cython.pointer(Chain)),
    written: cython.pointer(uint32_t),
    count: cython.int,
) -> cython.void:
    """Give chains back that the driver is to see at once: it looks at the first one's flags, which are set last."""
    first: cython.pointer(uint8_t) = q.desc + 16 * cython.cast(uint64_t, q.next_used)
    flags: uint16_t = packed_fill(q, chains[0].id, chains[0].slots, written[0])
    i: cython.int
    for i in range(1, count):
        packed_put(q, chains[i].id, chains[i].slots, written[i])
    store16(first + 14, flags, RELEASE)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def packed_wants_interrupt(q: cython.pointer(VirtQueue)) -> cython.bint:
    """Whether the driver wants to hear of the last `unsignalled` places. After a full fence."""
    flags: uint16_t = load16(q.driver + 2, RELAXED) & 3
    if flags == EVENTS_OFF:
        return False
    if flags != EVENTS_AT or not q.event_index:
        return True
    event: uint16_t = load16(q.driver, RELAXED)
    wrap: cython.bint = event >> 15
    event &= 0x7FFF
    if wrap != q.used_wrap:  # it was meant for the round before
        event -= q.size
    since: uint16_t = q.next_used - event - 1
    return since < q.unsignalled
