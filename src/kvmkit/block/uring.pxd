# io_uring by its raw system calls: one ring for each thread that does I/O. Source: io_uring(7), <linux/io_uring.h>.
from libc.stdint cimport int32_t, uint8_t, uint32_t, uint64_t

cdef extern from "<linux/io_uring.h>" nogil:
    struct io_sqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t ring_entries
        uint32_t flags
        uint32_t array
    struct io_cqring_offsets:
        uint32_t head
        uint32_t tail
        uint32_t ring_mask
        uint32_t ring_entries
        uint32_t cqes
    struct io_uring_params:
        uint32_t sq_entries
        uint32_t cq_entries
        uint32_t flags
        uint32_t features
        io_sqring_offsets sq_off
        io_cqring_offsets cq_off
    struct io_uring_sqe:
        uint8_t opcode
        uint8_t flags
        int32_t fd
        uint64_t off
        uint64_t addr
        uint32_t len
        int rw_flags
        uint32_t fsync_flags
        uint64_t user_data
    struct io_uring_cqe:
        uint64_t user_data
        int32_t res
        uint32_t flags
    unsigned int IORING_OP_READV
    unsigned int IORING_OP_WRITEV
    unsigned int IORING_OP_FSYNC
    unsigned int IORING_OP_FALLOCATE
    unsigned int IORING_OP_READ
    unsigned int IORING_OP_WRITE
    unsigned int IORING_FSYNC_DATASYNC
    unsigned int IORING_ENTER_GETEVENTS
    unsigned int IORING_FEAT_SINGLE_MMAP
    unsigned int IORING_FEAT_NODROP
    long IORING_OFF_SQ_RING
    long IORING_OFF_SQES

cdef extern from "<sys/syscall.h>" nogil:
    long SYS_io_uring_setup
    long SYS_io_uring_enter

cdef extern from "<unistd.h>" nogil:
    long syscall(long number, ...)

cdef struct Uring:
    int fd  # -1: there is none
    uint8_t *ring
    size_t ring_bytes
    io_uring_sqe *sqes
    size_t sqes_bytes
    uint32_t entries
    uint32_t *sq_head
    uint32_t *sq_tail
    uint32_t *sq_array
    uint32_t sq_mask
    uint32_t tail  # ours; the kernel sees it at `uring_submit`
    uint32_t *cq_head
    uint32_t *cq_tail
    uint32_t cq_mask
    io_uring_cqe *cqes

cdef int uring_open(Uring *u, uint32_t entries) noexcept nogil
cdef void uring_close(Uring *u) noexcept nogil
cdef io_uring_sqe *uring_next(Uring *u) noexcept nogil
cdef int uring_submit(Uring *u, uint32_t wait) noexcept nogil
cdef bint uring_has(Uring *u) noexcept nogil
cdef bint uring_take(Uring *u, uint64_t *user_data, int32_t *result) noexcept nogil
