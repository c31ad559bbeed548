"""For tests of devices, ours and yours: a driver that stands in for a guest's."""

from .driver import LocalVm, MmioDriver
from .pci_driver import PciDriver
from .rings import BadRing, PackedRing, SplitRing

__all__ = ["BadRing", "LocalVm", "MmioDriver", "PackedRing", "PciDriver", "SplitRing"]
