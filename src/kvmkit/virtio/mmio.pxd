from libc.stdint cimport uint32_t, uint64_t

from kvmkit.bus.device cimport Device
from kvmkit.virtio.device cimport VirtioDevice

cdef class MmioTransport(Device):
    cdef readonly VirtioDevice device
    cdef readonly uint64_t base
    cdef readonly int gsi
    cdef object vm
    cdef int line
    cdef uint32_t device_page, driver_page  # which 32 feature bits are shown
    cdef uint64_t driver_features
    cdef int selected
    cdef list chosen  # per queue: size, descriptors, driver, device
