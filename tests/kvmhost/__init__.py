"""The KVM test host: a small Debian under QEMU's TCG with SVM, in which /dev/kvm is a real kvm_amd.

`python -m tests.kvmhost` builds it, starts it (or finds it running), pushes this checkout into it and runs the tests
there that need an unmodified Linux on the `kvm` engine. `python -m tests.kvmhost --help` says more.
"""
