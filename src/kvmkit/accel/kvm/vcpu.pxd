from libc.stdint cimport uint8_t, uint32_t, uint64_t

from kvmkit.accel.kvm cimport uapi
from kvmkit.accel.kvm.vm cimport KvmVm
from kvmkit.bus.space cimport AddressSpace

cdef class KvmVcpu:
    cdef readonly int fd
    cdef readonly int index
    cdef KvmVm vm
    cdef uapi.kvm_run *page
    cdef size_t page_size
    cdef AddressSpace ports
    cdef AddressSpace mmio
    cdef uint64_t counts[64]
    cdef uapi.pthread_t thread
    cdef bint running
    cdef uint64_t deadline

    cdef object _loop(self)
    cdef int _port(self) except -1
    cdef int _memory(self) except -1
    cdef object _exit(self, uint32_t reason)
    cdef int _idle(self) except -1
    cdef bytes _get_msrs(self)
    cdef int _set_msrs(self, bytes data) except -1
