"""Split virtqueues: a table of descriptors, a ring of available and a ring of used ones. Source: virtio 1.2, 2.7."""

import cython
from cython.cimports.kvmkit.memory.ram import ram_pointer
from cython.cimports.kvmkit.virtio.chain import chain_add, chain_add_table, chain_clear, queue_break
from cython.cimports.kvmkit.virtio.ring import (
    ACQUIRE,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
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
def split_map(q: cython.pointer(VirtQueue)) -> cython.bint:
    """Find the three rings in memory. False: they are not all there, or not aligned."""
    size: uint64_t = q.size
    if size & (size - 1):  # positions are taken modulo the size while indices run to 65535
        return False
    if q.desc_address % 16 or q.driver_address % 2 or q.device_address % 4:
        return False
    q.desc = ram_pointer(q.ram, q.desc_address, 16 * size)
    q.driver = ram_pointer(q.ram, q.driver_address, 6 + 2 * size)
    q.device = ram_pointer(q.ram, q.device_address, 6 + 8 * size)
    return q.desc != cython.NULL and q.driver != cython.NULL and q.device != cython.NULL


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def split_quiet(q: cython.pointer(VirtQueue)) -> cython.void:
    """Tell the driver that it need not ring. With event indices it rings at one index only: a stale one does."""
    if not q.event_index:
        store16(q.device, 1, RELAXED)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def split_loud(q: cython.pointer(VirtQueue)) -> cython.void:
    """Ask for a ring at the next chain."""
    if q.event_index:
        store16(q.device + 4 + 8 * cython.cast(uint64_t, q.size), q.next_avail, RELAXED)
    else:
        store16(q.device, 0, RELAXED)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def split_has(q: cython.pointer(VirtQueue)) -> cython.bint:
    return load16(q.driver + 2, ACQUIRE) != q.next_avail


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def split_get(q: cython.pointer(VirtQueue), chain: cython.pointer(Chain)) -> cython.int:
    """Take the next chain: 1; there is none: 0; the queue is broken: -1."""
    pending: uint16_t = load16(q.driver + 2, ACQUIRE) - q.next_avail
    if pending == 0:
        return 0
    # An index that jumped would have us take chains that were never offered, again and again.
    if pending > q.size:
        queue_break(q, "the available index jumped by more than the queue's size")
        return -1
    i: uint32_t = load16(q.driver + 4 + 2 * cython.cast(uint64_t, q.next_avail & (q.size - 1)), RELAXED)
    chain_clear(chain)
    chain.id = i
    chain.slots = 1
    while True:
        if i >= q.size:
            queue_break(q, "a descriptor's number is not below the queue's size")
            return -1
        # Each descriptor is read once: the guest may change it between a check and a use.
        where: uint64_t = load64(q.desc + 16 * cython.cast(uint64_t, i), RELAXED)
        rest: uint64_t = load64(q.desc + 16 * cython.cast(uint64_t, i) + 8, RELAXED)
        flags: uint16_t = cython.cast(uint16_t, rest >> 32)
        if flags & DESC_INDIRECT:
            if flags & DESC_NEXT:
                queue_break(q, "an indirect descriptor with a next one")
                return -1
            if not chain_add_table(q, chain, where, cython.cast(uint32_t, rest)):
                return -1
            break
        if not chain_add(q, chain, where, cython.cast(uint32_t, rest), flags & DESC_WRITE):
            return -1
        if not flags & DESC_NEXT:
            break
        i = cython.cast(uint32_t, rest >> 48)
    q.next_avail += 1
    return 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def split_put(q: cython.pointer(VirtQueue), id: uint16_t, written: uint32_t) -> cython.void:
    """Give a chain back."""
    place: cython.pointer(uint8_t) = q.device + 4 + 8 * cython.cast(uint64_t, q.next_used & (q.size - 1))
    store32(place, id, RELAXED)
    store32(place + 4, written, RELAXED)
    q.next_used += 1
    store16(q.device + 2, q.next_used, RELEASE)
    q.unsignalled += 1


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def split_put_together(
    q: cython.pointer(VirtQueue),
    chains: cython.pointer(cython.pointer(Chain)),
    written: cython.pointer(uint32_t),
    count: cython.int,
) -> cython.void:
    """Give chains back that the driver is to see at once."""
    i: cython.int
    for i in range(count):
        place: cython.pointer(uint8_t) = q.device + 4 + 8 * cython.cast(uint64_t, (q.next_used + i) & (q.size - 1))
        store32(place, chains[i].id, RELAXED)
        store32(place + 4, written[i], RELAXED)
    q.next_used += count
    store16(q.device + 2, q.next_used, RELEASE)
    q.unsignalled += count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def split_wants_interrupt(q: cython.pointer(VirtQueue)) -> cython.bint:
    """Whether the driver wants to hear of the last `unsignalled` chains. After a full fence."""
    if not q.event_index:
        return not load16(q.driver, RELAXED) & 1
    event: uint16_t = load16(q.driver + 4 + 2 * cython.cast(uint64_t, q.size), RELAXED)
    since: uint16_t = q.next_used - event - 1
    return since < q.unsignalled
