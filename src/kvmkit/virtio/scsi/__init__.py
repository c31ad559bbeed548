"""SCSI: a target with disks and CD-ROMs, and the virtio device by which a guest's commands come to it.

`sense` says why a command failed, `unit` answers what every logical unit is asked, `disk` and `cdrom` are the two
kinds, `target` finds the unit a command is for. None of these knows virtio.
"""
