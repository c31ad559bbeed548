"""What the fuzzer's two processes have in common."""

PYTHON_PARTS = ("kvmkit.virtio", "kvmkit.pci", "kvmkit.guest", "kvmkit.boot", "kvmkit.devices")
"""Of these, what is not compiled is instrumented by atheris when it is imported."""
INSIDE = "KVMKIT_FUZZ_INSIDE"
AGAIN = "KVMKIT_FUZZ_AGAIN"
"""An executable that runs the inner process once more: libFuzzer merges corpora by it."""
