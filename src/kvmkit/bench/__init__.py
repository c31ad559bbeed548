"""Measure kvmkit beside QEMU, in one run, turn by turn: boots (`boot`) and exits to user space (`exits`).

Each measurement is of whole processes, started and timed by the same code, so that neither side is favoured.
"""
