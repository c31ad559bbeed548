"""The VMs of this user: what each is to be, and how others' descriptions of a VM are read."""
