from libc.stdint cimport uint8_t, uint32_t

from kvmkit.accel.tcg.formats cimport kvm_pic_state

cdef class Pic:
    cdef kvm_pic_state chips[2]
    cdef bint intr
    cdef uint32_t ended

    cpdef void reset(self) noexcept nogil
    cpdef void set_line(self, unsigned int irq, bint level) noexcept nogil
    cpdef bint output(self) noexcept nogil
    cpdef int acknowledge(self) noexcept nogil
    cpdef bint claims(self, unsigned int port) noexcept nogil
    cpdef uint8_t read(self, unsigned int port) noexcept nogil
    cpdef void write(self, unsigned int port, uint8_t value) noexcept nogil
    cpdef uint32_t take_ended(self) noexcept nogil

    cdef void initialize(self, kvm_pic_state *chip) noexcept nogil
    cdef int request(self, kvm_pic_state *chip) noexcept nogil
    cdef void take(self, kvm_pic_state *chip, int irq) noexcept nogil
    cdef void clear(self, kvm_pic_state *chip, int irq) noexcept nogil
    cdef void command(self, kvm_pic_state *chip, uint8_t value) noexcept nogil
    cdef void end(self, kvm_pic_state *chip, uint8_t value) noexcept nogil
    cdef void data(self, kvm_pic_state *chip, uint8_t value) noexcept nogil
    cdef void update(self) noexcept nogil
