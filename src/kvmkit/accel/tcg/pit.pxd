from libc.stdint cimport int64_t, uint8_t, uint32_t, uint64_t

from kvmkit.accel.tcg.formats cimport kvm_pit_channel_state, kvm_pit_state2

cdef class Pit:
    cdef kvm_pit_state2 pit
    cdef int64_t stopped[3]
    cdef int64_t next

    cpdef void reset(self) noexcept nogil
    cpdef bint claims(self, unsigned int port) noexcept nogil
    cpdef uint8_t read(self, unsigned int port, int64_t now) noexcept nogil
    cpdef void write(self, unsigned int port, uint8_t value, int64_t now) noexcept nogil
    cpdef bint output(self, int channel, int64_t now) noexcept nogil
    cpdef int64_t deadline(self) noexcept nogil
    cpdef bint poll(self, int64_t now) noexcept nogil

    cdef uint64_t elapsed(self, int channel, int64_t now) noexcept nogil
    cdef uint32_t counter(self, int channel, int64_t now) noexcept nogil
    cdef void load(self, int channel, uint32_t value, int64_t now) noexcept nogil
    cdef void set_gate(self, int channel, bint level, int64_t now) noexcept nogil
    cdef void control(self, uint8_t value, int64_t now) noexcept nogil
    cdef void latch_count(self, int channel, int64_t now) noexcept nogil
    cdef void latch_status(self, int channel, int64_t now) noexcept nogil
    cdef void schedule(self, int64_t now) noexcept nogil
