"""One VM: a spec becomes a board, kernel and threads, and has a life with an end.

    with Machine(MachineSpec(kernel="bzImage", memory=parse_size("512M"))) as machine:
        machine.start()
        ended = machine.wait()

The phases, one file each: spec, board (memory, address spaces, devices, tables), loading (the kernel), vcpus and
channels (threads), lifecycle, stats.
"""

from .end import End, EndReason, State
from .lifecycle import Machine
from .spec import Disk, MachineSpec, Network, ScsiDisk, parse_disk, parse_network, parse_scsi, parse_size

__all__ = [
    "Disk",
    "End",
    "EndReason",
    "Machine",
    "MachineSpec",
    "Network",
    "ScsiDisk",
    "State",
    "parse_disk",
    "parse_network",
    "parse_scsi",
    "parse_size",
]
