"""Descriptor chains: a request's segments, each checked against guest memory before anything looks at it."""

import cython
from cython.cimports.kvmkit.memory.ram import ram_pointer
from cython.cimports.kvmkit.virtio.ring import (
    DESC_BYTES,
    DESC_INDIRECT,
    DESC_NEXT,
    DESC_WRITE,
    RELAXED,
    Chain,
    VirtQueue,
    load64,
)
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.stdlib import calloc, free
from cython.cimports.libc.string import memcpy
from cython.cimports.posix.uio import iovec


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def chain_new(room: uint16_t) -> cython.pointer(Chain):
    """A chain of up to `room` segments; NULL: no memory."""
    chain: cython.pointer(Chain) = cython.cast(cython.pointer(Chain), calloc(1, cython.sizeof(Chain)))
    if chain == cython.NULL:
        return cython.NULL
    chain.room = room
    chain.iov = cython.cast(cython.pointer(iovec), calloc(room, cython.sizeof(iovec)))
    chain.address = cython.cast(cython.pointer(uint64_t), calloc(room, 8))
    if chain.iov == cython.NULL or chain.address == cython.NULL:
        chain_free(chain)
        return cython.NULL
    return chain


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def chain_free(chain: cython.pointer(Chain)) -> cython.void:
    if chain != cython.NULL:
        free(chain.iov)
        free(chain.address)
        free(chain)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def chain_clear(chain: cython.pointer(Chain)) -> cython.void:
    chain.count = chain.readable = chain.slots = 0
    chain.read_bytes = chain.write_bytes = 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def queue_break(q: cython.pointer(VirtQueue), why: cython.p_const_char) -> cython.bint:
    """The driver broke the rules: nothing more is taken from this queue until it resets the device. Always False."""
    if q.broken == cython.NULL:
        q.broken = why
    q.ready = False
    return False


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def chain_add(
    q: cython.pointer(VirtQueue),
    chain: cython.pointer(Chain),
    address: uint64_t,
    length: uint32_t,
    writable: cython.bint,
) -> cython.bint:
    """Add a segment. False: the queue is broken, and says why."""
    # A chain that leads back into itself would keep the worker for ever.
    if chain.count >= chain.room:
        return queue_break(q, "a chain is longer than the queue, or leads back into itself")
    if length == 0:
        return queue_break(q, "a descriptor of no bytes")
    if not writable and chain.count > chain.readable:
        return queue_break(q, "a descriptor to be read stands behind one to be written")
    # The length in the used ring has 32 bits; more would also let one request hold the worker for long.
    if (chain.read_bytes + chain.write_bytes + length) >> 32:
        return queue_break(q, "a chain of 4 GiB or more")
    # The one way from a guest's address to ours: outside of RAM the guest could read or damage this process.
    host: cython.pointer(uint8_t) = ram_pointer(q.ram, address, length)
    if host == cython.NULL:
        return queue_break(q, "a descriptor points outside of memory")
    chain.iov[chain.count].iov_base = host
    chain.iov[chain.count].iov_len = length
    chain.address[chain.count] = address
    chain.count += 1
    if writable:
        chain.write_bytes += length
    else:
        chain.read_bytes += length
        chain.readable += 1
    return True


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def chain_add_table(
    q: cython.pointer(VirtQueue), chain: cython.pointer(Chain), address: uint64_t, length: uint32_t
) -> cython.bint:
    """Add the descriptors of an indirect table. False: the queue is broken."""
    if not q.indirect:
        return queue_break(q, "an indirect descriptor, which was not negotiated")
    entries: uint32_t = length // DESC_BYTES
    if length == 0 or length % DESC_BYTES:
        return queue_break(q, "an indirect table that is not a multiple of 16 bytes")
    table: cython.pointer(uint8_t) = ram_pointer(q.ram, address, length)
    if table == cython.NULL:
        return queue_break(q, "an indirect table outside of memory")
    i: uint32_t = 0
    seen: uint32_t = 0
    while True:
        # Each descriptor is read once: the guest may change it between a check and a use.
        where: uint64_t = load64(table + DESC_BYTES * i, RELAXED)
        rest: uint64_t = load64(table + DESC_BYTES * i + 8, RELAXED)
        flags: uint16_t = cython.cast(uint16_t, rest >> (48 if q.packed else 32))
        if flags & DESC_INDIRECT:
            return queue_break(q, "an indirect table within an indirect table")  # without end, if it were followed
        if not chain_add(q, chain, where, cython.cast(uint32_t, rest), flags & DESC_WRITE):
            return False
        seen += 1
        if q.packed:  # all of the table, in order: 2.8.7
            if seen == entries:
                return True
            i += 1
        else:
            if not flags & DESC_NEXT:
                return True
            i = cython.cast(uint32_t, rest >> 48)
            if i >= entries:
                return queue_break(q, "an indirect table leads outside of itself")


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def chain_read(
    chain: cython.pointer(cython.const[Chain]), offset: uint64_t, into: cython.p_void, length: uint64_t
) -> uint64_t:
    """Copy up to `length` bytes of what the driver sent, from `offset`; how many there were."""
    return _copy(chain, 0, chain.readable, offset, cython.cast(cython.pointer(uint8_t), into), length, False)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def chain_write(
    chain: cython.pointer(cython.const[Chain]), offset: uint64_t, data: cython.p_const_void, length: uint64_t
) -> uint64_t:
    """Copy up to `length` bytes to where the driver wants an answer, from its byte `offset` on; how many had room."""
    source: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), data)
    return _copy(chain, chain.readable, chain.count, offset, source, length, True)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def chain_gather(
    chain: cython.pointer(cython.const[Chain]),
    first: uint16_t,
    end: uint16_t,
    skip: uint64_t,
    length: uint64_t,
    into: cython.pointer(iovec),
) -> uint16_t:
    """Set `into` to `length` bytes of the segments [first, end), without the first `skip`; how many parts they are."""
    count: uint16_t = 0
    i: uint16_t
    for i in range(first, end):
        size: uint64_t = chain.iov[i].iov_len
        if skip >= size:
            skip -= size
            continue
        part: uint64_t = min(size - skip, length)
        if part == 0:
            break
        into[count].iov_base = cython.cast(cython.pointer(uint8_t), chain.iov[i].iov_base) + skip
        into[count].iov_len = part
        count += 1
        length -= part
        skip = 0
    return count


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _copy(
    chain: cython.pointer(cython.const[Chain]),
    first: uint16_t,
    end: uint16_t,
    offset: uint64_t,
    ours: cython.pointer(uint8_t),
    length: uint64_t,
    to_guest: cython.bint,
) -> uint64_t:
    done: uint64_t = 0
    i: uint16_t
    for i in range(first, end):
        size: uint64_t = chain.iov[i].iov_len
        if offset >= size:
            offset -= size
            continue
        theirs: cython.pointer(uint8_t) = cython.cast(cython.pointer(uint8_t), chain.iov[i].iov_base) + offset
        part: uint64_t = min(size - offset, length - done)
        if to_guest:
            memcpy(theirs, ours + done, part)
        else:
            memcpy(ours + done, theirs, part)
        done += part
        offset = 0
        if done == length:
            break
    return done
