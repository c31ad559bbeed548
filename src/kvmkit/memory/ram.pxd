from libc.stdint cimport uint8_t, uint64_t

ctypedef void (*written_function)(void *, uint64_t, uint64_t) noexcept nogil

cdef extern from "<sys/mman.h>" nogil:
    void *mmap_at "mmap"(void *, size_t, int, int, int, long)
    int PROT_READ
    int PROT_WRITE
    int MAP_SHARED
    int MAP_PRIVATE
    int MAP_FIXED
    void *MAP_FAILED

cdef struct Region:  # of another process's guest
    uint64_t guest
    uint64_t size
    uint8_t *host

cdef struct Ram:  # what a thread without the GIL knows of guest memory
    uint8_t *base
    uint64_t size
    uint64_t low
    written_function written  # tells the engine that a device wrote there; NULL: it need not know
    void *engine
    Region *regions  # where this is the memory of another process's guest, and `size` 0
    int region_count

cdef inline uint8_t *region_pointer(const Ram *ram, uint64_t address, uint64_t length) noexcept nogil:
    cdef int i
    cdef uint64_t offset
    for i in range(ram.region_count):
        offset = address - ram.regions[i].guest
        if address >= ram.regions[i].guest and offset < ram.regions[i].size:
            if length <= ram.regions[i].size - offset:
                return ram.regions[i].host + offset
            return NULL
    return NULL

cdef inline uint8_t *ram_pointer(const Ram *ram, uint64_t address, uint64_t length) noexcept nogil:
    """The host address of [address, address + length), or NULL when not all of it is one stretch of RAM."""
    if address < ram.low:
        if length > ram.low - address:
            return NULL
        return ram.base + address
    if address >> 32:
        address -= (<uint64_t>1) << 32
        if address < ram.size - ram.low and length <= ram.size - ram.low - address:
            return ram.base + ram.low + address
        address += (<uint64_t>1) << 32
    if ram.region_count:
        return region_pointer(ram, address, length)
    return NULL

cdef class GuestMemory:
    cdef uint8_t *base
    cdef readonly uint64_t size
    cdef readonly uint64_t low
    cdef readonly uint64_t span  # bytes of all that is mapped: RAM, and files behind it
    cdef uint64_t placed
    cdef list files
    cdef readonly int fd
    cdef object mapping
    cdef readonly tuple rom  # (guest physical address, host address, bytes); None: there is none
    cdef object rom_mapping
    cdef Ram ram

    cdef uint8_t *pointer(self, uint64_t address, uint64_t length) noexcept nogil
