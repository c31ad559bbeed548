from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

from kvmkit.accel.tcg.layout cimport Env, SegmentCache

cdef inline uint64_t *field64(Env *env, int offset) noexcept nogil:
    return <uint64_t *>(<uint8_t *>env + offset)

cdef inline uint32_t *field32(Env *env, int offset) noexcept nogil:
    return <uint32_t *>(<uint8_t *>env + offset)

cdef void set_flags(Env *env, uint64_t flags) noexcept nogil
cdef void fixed_segment(Env *env, int index, uint32_t selector, uint32_t flags) noexcept nogil
cdef bytes get_regs(Env *env, uint64_t flags)
cdef set_regs(Env *env, bytes data)
cdef bytes get_sregs(Env *env, uint64_t apic_base, uint64_t cr8)
cdef set_sregs(Env *env, bytes data)
cdef bytes get_debugregs(Env *env)
cdef set_debugregs(Env *env, bytes data)
cdef bytes get_events(Env *env, bint nmi_pending)
cdef set_events(Env *env, bytes data)
cdef reset(Env *env)
