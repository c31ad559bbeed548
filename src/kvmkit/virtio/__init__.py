"""Virtio devices (OASIS virtio 1.2): queues, devices and the transports by which a guest finds them."""
