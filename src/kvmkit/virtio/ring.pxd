# Virtqueues as C structures: a worker without the GIL holds pointers to them.
from libc.stdint cimport uint8_t, uint16_t, uint32_t, uint64_t
from posix.uio cimport iovec

from kvmkit.memory.atomics cimport (
    ACQUIRE,
    RELAXED,
    RELEASE,
    SEQ_CST,
    fence,
    fetch_and32,
    fetch_or32,
    load16,
    load32,
    load64,
    store16,
    store32,
)
from kvmkit.memory.ram cimport Ram

cdef enum:
    QUEUE_MOST = 1024  # entries; also keeps what one guest makes us allocate for its queues small

cdef enum:
    DESC_BYTES = 16

cdef enum:  # descriptor flags, virtio 1.2, 2.7.5 and 2.8.1
    DESC_NEXT = 1
    DESC_WRITE = 2
    DESC_INDIRECT = 4
    DESC_AVAIL = 1 << 7
    DESC_USED = 1 << 15

cdef enum:  # event suppression in packed rings, 2.8.10
    EVENTS_ON = 0
    EVENTS_OFF = 1
    EVENTS_AT = 2

cdef struct Chain:  # one request: host addresses, checked
    uint16_t id  # split: its first descriptor; packed: its buffer id
    uint16_t slots  # places it takes in a packed ring
    uint16_t order  # how many were taken before it
    uint16_t count  # segments
    uint16_t readable  # of these, the first so many are the driver's, the rest are to be written
    uint16_t room  # segments there is place for
    uint64_t read_bytes
    uint64_t write_bytes
    iovec *iov
    uint64_t *address  # guest physical

cdef struct Done:  # a chain given back before its turn
    uint16_t id
    uint16_t slots
    uint32_t written
    bint done

cdef struct VirtQueue:
    Ram *ram
    int index
    uint16_t most  # the size offered
    uint16_t size
    bint ready  # set up and not broken: workers look at nothing else
    bint packed
    bint event_index
    bint indirect
    bint in_order
    uint64_t desc_address
    uint64_t driver_address
    uint64_t device_address
    uint8_t *desc
    uint8_t *driver  # split: available ring; packed: driver event suppression
    uint8_t *device  # split: used ring; packed: device event suppression
    uint16_t next_avail
    uint16_t next_used
    bint avail_wrap
    bint used_wrap
    uint16_t taken  # chains, ever; for in_order
    uint16_t returned
    uint16_t in_flight  # chains taken and not given back
    uint16_t busy  # places these take in a packed ring
    uint16_t unsignalled  # slots used since the driver was last considered for an interrupt
    bint wanted  # False: the device has no use for available chains now; set by it, taken back at each doorbell
    const char *broken  # why the device needs a reset
    int doorbell  # eventfd
    int interrupt  # eventfd, -1: none
    uint32_t *interrupt_status  # where bit 0 says that it was this; NULL: the interrupt says it
    Done *done
    uint64_t requests
    uint64_t interrupts
