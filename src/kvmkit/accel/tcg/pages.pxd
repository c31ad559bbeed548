from libc.stdint cimport int64_t, uint64_t

cdef void mark_page(void *cs, uint64_t physical, bint slow) noexcept nogil
cdef bint on_rom_write(void *uc, int kind, uint64_t address, int size, int64_t value, void *user) noexcept nogil
