"""Virtio devices that another process serves (the frontend), and ours served to another VMM (the backend)."""
