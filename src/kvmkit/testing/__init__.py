"""For tests of devices, ours and yours: a driver that stands in for a guest's."""

from .rings import BadRing, PackedRing, SplitRing

__all__ = ["BadRing", "PackedRing", "SplitRing"]
