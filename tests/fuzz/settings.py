"""What the fuzzer's two processes have in common."""

INSTRUMENTED = """
    kvmkit.boot.bzimage kvmkit.boot.elf kvmkit.boot.identify kvmkit.boot.multiboot kvmkit.boot.unpack
    kvmkit.guest.client kvmkit.pci kvmkit.virtio.pci kvmkit.virtio.saved kvmkit.virtio.scsi.device
    kvmkit.virtio.scsi.cdrom kvmkit.virtio.net kvmkit.virtio.vsock
""".split()
"""Of these, and of what they import, the modules in Python are instrumented by atheris."""
INSIDE = "KVMKIT_FUZZ_INSIDE"
AGAIN = "KVMKIT_FUZZ_AGAIN"
"""An executable that runs the inner process once more: libFuzzer merges corpora by it."""
