"""UEFI Secure Boot: variable stores, their keys, and putting one into the other.

Stands alone: nothing here knows a machine. Variable stores and signature lists are read here, as a guest could write
anything into its own; certificates come from virt-firmware, which is imported only where they are used.
"""
