from kvmkit.memory.ram cimport GuestMemory, Region

cdef enum:
    MOST_REGIONS = 8  # vhost-user's

cdef class ForeignMemory(GuestMemory):
    cdef Region table[MOST_REGIONS]
    cdef list mappings
