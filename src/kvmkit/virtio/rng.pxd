from kvmkit.virtio.device cimport VirtioDevice
from kvmkit.virtio.ring cimport Chain

cdef extern from "<sys/random.h>" nogil:
    ssize_t getrandom(void *, size_t, unsigned int)

cdef enum:
    MOST = 65536  # bytes for one request: a guest must not have one keep the host's generator busy for long

cdef class Rng(VirtioDevice):
    cdef Chain *chain
