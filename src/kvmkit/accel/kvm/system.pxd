cdef class KvmSystem:
    cdef readonly int fd
