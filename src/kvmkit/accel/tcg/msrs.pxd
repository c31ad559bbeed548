from libc.stdint cimport uint32_t, uint64_t

cdef bint known_msr(uint32_t msr) noexcept nogil
cdef bint machine_msr(uint32_t msr) noexcept nogil
cdef bint canonical(uint64_t address) noexcept nogil
cdef bint memory_types(uint64_t value) noexcept nogil
cdef bint msr_takes(uint32_t msr, uint64_t value) noexcept nogil
cdef bint control_takes(int reg, uint64_t value, uint64_t cr4_bits) noexcept nogil
