"""kvm-unit-tests on kvmkit and on QEMU with the same engine, side by side: `python -m tests.kvm_unit_tests --help`."""
