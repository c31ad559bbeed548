"""What the fuzzer's two processes have in common."""

INSTRUMENTED = """
    kvmkit.boot.bzimage kvmkit.boot.elf kvmkit.boot.identify kvmkit.boot.multiboot kvmkit.boot.unpack
    kvmkit.guest.client kvmkit.virtio.saved kvmkit.virtio.scsi.device
    kvmkit.virtio.scsi.cdrom kvmkit.virtio.net kvmkit.virtio.vsock
    kvmkit.virtio.input kvmkit.virtio.pmem kvmkit.vhost_user.link kvmkit.virtio.vhost_user.kinds
    kvmkit.virtio.vhost_user.server kvmkit.guest.qga kvmkit.devices.fw_cfg kvmkit.devices.i8042 kvmkit.devices.power
    kvmkit.devices.rtc
""".split()
"""Of these, and of what they import, the modules in Python are instrumented by atheris. Not the PCI bus: atheris then
takes 2 MB for each run and makes some 5 a second; without it nothing grows."""
INSIDE = "KVMKIT_FUZZ_INSIDE"
AGAIN = "KVMKIT_FUZZ_AGAIN"
"""An executable that runs the inner process once more: libFuzzer merges corpora by it."""
