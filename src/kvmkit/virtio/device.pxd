from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvmkit.memory.ram cimport GuestMemory
from kvmkit.virtio.lane cimport Lane, Served
from kvmkit.virtio.limit cimport Limit
from kvmkit.virtio.ring cimport VirtQueue

cdef class VirtioDevice(Served):
    cdef readonly str name
    cdef readonly int kind
    cdef readonly str driver
    cdef readonly uint64_t features
    cdef readonly uint64_t accepted
    cdef readonly list queues
    cdef readonly list lanes
    cdef readonly GuestMemory memory
    cdef readonly uint8_t status
    cdef readonly uint32_t generation
    cdef readonly str failure
    cdef readonly bytes config
    cdef public object log
    cdef readonly bint held
    cdef readonly bint closed
    cdef readonly bint driven
    cdef readonly object lock
    cdef list lane_of
    cdef uint32_t interrupts_pending
    cdef int config_interrupt
    cdef Limit limit

    cdef void interrupt_config(self) noexcept nogil
    cdef bint may_begin(self, Lane lane, VirtQueue *q) noexcept nogil
