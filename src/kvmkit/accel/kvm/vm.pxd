from kvmkit.bus.space cimport AddressSpace

cdef class KvmVm:
    cdef readonly int fd
    cdef readonly str engine
    cdef readonly int cpus
    cdef readonly int xsave_size
    cdef readonly object memory
    cdef readonly dict cpuid
    cdef readonly list msr_indices
    cdef readonly bint msrs_checked
    cdef AddressSpace ports
    cdef AddressSpace mmio
    cdef int mmap_size

    cpdef irqfd(self, int fd, unsigned int gsi, int resample=?)
    cdef _irqfd(self, int fd, unsigned int gsi, unsigned int flags, int resample)
    cdef _ioeventfd(self, int fd, object address, object size, bint port, object match, unsigned int flags)
