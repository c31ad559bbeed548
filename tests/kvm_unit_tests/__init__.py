"""kvm-unit-tests on kvmkit and on QEMU, side by side: `python -m tests.kvm_unit_tests --help`.

Nothing of kvm-unit-tests is kept here: its source is cloned and built on demand. docs/kvm-unit-tests.md explains the
differences found.
"""
