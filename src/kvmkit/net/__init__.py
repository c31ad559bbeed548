"""What stands behind a virtio network device: something that takes a frame and something that gives one."""
