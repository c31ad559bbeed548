"""vhost-user: a device's queues served by another process. This is the protocol; the devices are in kvmkit.virtio."""
