from libc.stdint cimport uint32_t, uint64_t

from kvmkit.accel.tcg.layout cimport Env

ctypedef uint32_t (*code_function)(void *env, uint64_t address) noexcept nogil

cdef enum:
    DS = 3
    HF_CS32 = 1 << 4
    LONGEST = 14  # prefixes

cdef bint is_prefix(uint32_t byte, bint long_mode) noexcept nogil
cdef int int1_length(Env *env, code_function byte) noexcept nogil
cdef bint is_hypercall(Env *env, code_function byte) noexcept nogil
cdef bint is_wrmsr(Env *env, code_function byte) noexcept nogil
cdef uint32_t port_exit(Env *env, code_function byte, int size, int *length) noexcept nogil
