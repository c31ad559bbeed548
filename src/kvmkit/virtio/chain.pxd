from libc.stdint cimport uint16_t, uint32_t, uint64_t

from posix.uio cimport iovec

from kvmkit.virtio.ring cimport Chain, VirtQueue

cdef Chain *chain_new(uint16_t room) noexcept nogil
cdef void chain_free(Chain *chain) noexcept nogil
cdef void chain_clear(Chain *chain) noexcept nogil
cdef bint chain_add(VirtQueue *q, Chain *chain, uint64_t address, uint32_t length, bint writable) noexcept nogil
cdef bint chain_add_table(VirtQueue *q, Chain *chain, uint64_t address, uint32_t length) noexcept nogil
cdef bint queue_break(VirtQueue *q, const char *why) noexcept nogil

# For devices.
cdef uint64_t chain_read(const Chain *chain, uint64_t offset, void *into, uint64_t length) noexcept nogil
cdef uint64_t chain_write(const Chain *chain, uint64_t offset, const void *data, uint64_t length) noexcept nogil
cdef uint16_t chain_gather(const Chain *chain, uint16_t first, uint16_t end, uint64_t skip, uint64_t length,
                           iovec *into) noexcept nogil

cdef uint64_t _copy(const Chain *chain, uint16_t first, uint16_t end, uint64_t offset, unsigned char *ours,
                    uint64_t length, bint to_guest) noexcept nogil
