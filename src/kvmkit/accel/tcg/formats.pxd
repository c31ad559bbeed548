# The structures of saved state that are used as they are. Source: <linux/kvm.h>.
from libc.stdint cimport int64_t, uint8_t, uint16_t, uint32_t

cdef extern from "<linux/kvm.h>":
    struct kvm_pic_state:
        uint8_t last_irr
        uint8_t irr
        uint8_t imr
        uint8_t isr
        uint8_t priority_add
        uint8_t irq_base
        uint8_t read_reg_select
        uint8_t poll
        uint8_t special_mask
        uint8_t init_state
        uint8_t auto_eoi
        uint8_t rotate_on_auto_eoi
        uint8_t special_fully_nested_mode
        uint8_t init4
        uint8_t elcr
        uint8_t elcr_mask

    struct kvm_pit_channel_state:
        uint32_t count
        uint16_t latched_count
        uint8_t count_latched
        uint8_t status_latched
        uint8_t status
        uint8_t read_state
        uint8_t write_state
        uint8_t write_latch
        uint8_t rw_mode
        uint8_t mode
        uint8_t bcd
        uint8_t gate
        int64_t count_load_time

    struct kvm_pit_state2:
        kvm_pit_channel_state channels[3]
        uint32_t flags
        uint32_t reserved[9]

    enum:
        KVM_PIT_FLAGS_SPEAKER_DATA_ON
