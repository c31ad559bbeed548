"""One VM: a spec becomes a board, kernel and threads, and has a life with an end.

    with Machine(MachineSpec(kernel="bzImage", memory=parse_size("512M"))) as machine:
        machine.start()
        ended = machine.wait()

The phases, one file each: spec, board (memory, address spaces, devices, tables), loading (the kernel), vcpus and
channels (threads), lifecycle, stats.
"""

from .end import End, EndReason, State
from .lifecycle import Machine
from .network import Network, parse_network
from .pmem import Pmem, parse_pmem
from .spec import Disk, MachineSpec, ScsiDisk, parse_disk, parse_scsi, parse_size
from .vhost_user import VhostUser, parse_vhost_user
from .volume import Volume, parse_volume

__all__ = [
    "Disk",
    "End",
    "EndReason",
    "Machine",
    "MachineSpec",
    "Network",
    "Pmem",
    "ScsiDisk",
    "State",
    "VhostUser",
    "Volume",
    "parse_disk",
    "parse_network",
    "parse_pmem",
    "parse_scsi",
    "parse_size",
    "parse_vhost_user",
    "parse_volume",
]
