"""Which frames a card takes: by its address, its tables, its VLANs. Source: virtio 1.2, 5.1.6.5.

The control queue changes it while lanes look at it: a frame that arrives meanwhile may be taken by the old rules or the
new ones, as with any card. All sizes are fixed, so that nothing worse can come of it.
"""

import cython
from cython.cimports.kvmkit.net.filter import MOST_ADDRESSES, Filter
from cython.cimports.libc.stdint import uint8_t, uint16_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcmp, memcpy, memset

MODES: tuple = ("promiscuous", "all_multicast", "all_unicast", "no_multicast", "no_unicast", "no_broadcast")
"""In the order of the commands of class VIRTIO_NET_CTRL_RX."""
VLANS: int = 4096


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _listed(
    address: cython.pointer(cython.const[uint8_t]), table: cython.pointer(cython.const[uint8_t]), count: uint32_t
) -> cython.bint:
    if count > MOST_ADDRESSES:
        return True
    i: uint32_t
    found: cython.bint = False
    for i in range(count):
        if memcmp(address, table + 6 * i, 6) == 0:
            found = True
    return found


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def filter_wants(
    f: cython.pointer(cython.const[Filter]), frame: cython.pointer(cython.const[uint8_t]), length: uint64_t
) -> cython.bint:
    """Whether a frame is for this card."""
    if length < 14:
        return False
    if f.vlan and frame[12] == 0x81 and frame[13] == 0 and length >= 16:
        tag: uint16_t = (cython.cast(uint16_t, frame[14] & 0x0F) << 8) | frame[15]
        if not f.vlans[tag >> 3] >> (tag & 7) & 1:
            return False
    if f.promiscuous:
        return True
    if frame[0] & 1:
        i: cython.int
        broadcast: cython.bint = True
        for i in range(6):
            if frame[i] != 0xFF:
                broadcast = False
        if broadcast:
            return not f.no_broadcast
        if f.no_multicast:
            return False
        return f.all_multicast or _listed(frame, f.multicast, f.multicasts)
    if f.no_unicast:
        return False
    if f.all_unicast or memcmp(frame, f.mac, 6) == 0:
        return True
    return _listed(frame, f.unicast, f.unicasts)


@cython.cclass
class FrameFilter:
    """A filter as a driver sets it. A new one takes every frame, until the driver has a choice and makes it."""

    def __init__(self, mac: bytes):
        self.reset(mac)

    def reset(self, mac: bytes) -> None:
        memset(cython.address(self.f), 0, cython.sizeof(Filter))
        self.f.promiscuous = True
        self.set_mac(mac)

    def set_mac(self, mac: bytes) -> None:
        data: cython.pointer(cython.const[uint8_t]) = mac
        if len(mac) != 6:
            raise ValueError("a MAC address has 6 bytes")
        memcpy(self.f.mac, data, 6)

    def set_mode(self, command: int, on: bool) -> bool:
        """One of MODES by its number. False: there is none of that number."""
        if command == 0:
            self.f.promiscuous = on
        elif command == 1:
            self.f.all_multicast = on
        elif command == 2:
            self.f.all_unicast = on
        elif command == 3:
            self.f.no_multicast = on
        elif command == 4:
            self.f.no_unicast = on
        elif command == 5:
            self.f.no_broadcast = on
        else:
            return False
        return True

    def set_tables(self, unicast: bytes, multicast: bytes) -> None:
        """Addresses one behind the other, beside the card's own. More than MOST_ADDRESSES of a kind: all of it."""
        ours: cython.pointer(cython.const[uint8_t]) = unicast
        groups: cython.pointer(cython.const[uint8_t]) = multicast
        self.f.unicasts = self.f.multicasts = 0
        memcpy(self.f.unicast, ours, min(len(unicast), 6 * MOST_ADDRESSES))
        memcpy(self.f.multicast, groups, min(len(multicast), 6 * MOST_ADDRESSES))
        self.f.unicasts = min(len(unicast) // 6, MOST_ADDRESSES + 1)
        self.f.multicasts = min(len(multicast) // 6, MOST_ADDRESSES + 1)

    def look_at_vlans(self, on: bool) -> None:
        """Take no tagged frames but those of VLANs that are added; or all."""
        self.f.vlan = on

    def set_vlan(self, vlan: int, on: bool) -> bool:
        if not 0 <= vlan < VLANS:
            return False
        bit: uint8_t = 1 << (vlan & 7)
        if on:
            self.f.vlans[vlan >> 3] |= bit
        else:
            self.f.vlans[vlan >> 3] &= ~bit
        return True

    def wants(self, frame: bytes) -> bool:
        data: cython.pointer(cython.const[uint8_t]) = frame
        return filter_wants(cython.address(self.f), data, len(frame))

    @cython.cfunc
    def _vlan_state(self) -> bytes:
        return cython.cast(cython.p_char, self.f.vlans)[:512]

    def state(self) -> dict:
        """All that the driver has set, but for the address."""
        f = cython.address(self.f)
        modes = (f.promiscuous, f.all_multicast, f.all_unicast, f.no_multicast, f.no_unicast, f.no_broadcast)
        unicasts: uint32_t = min(f.unicasts, cython.cast(uint32_t, MOST_ADDRESSES))
        multicasts: uint32_t = min(f.multicasts, cython.cast(uint32_t, MOST_ADDRESSES))
        return {
            "modes": [bool(mode) for mode in modes],
            "unicast": cython.cast(cython.p_char, f.unicast)[: 6 * unicasts] + bytes(6 * (f.unicasts - unicasts)),
            "multicast": cython.cast(cython.p_char, f.multicast)[: 6 * multicasts]
            + bytes(6 * (f.multicasts - multicasts)),
            "vlans": self._vlan_state(),
        }

    def restore(self, state: dict) -> None:
        for command, on in enumerate(state["modes"]):
            self.set_mode(command, on)
        self.set_tables(state["unicast"], state["multicast"])
        vlans: bytes = state["vlans"]
        if len(vlans) == 512:
            data: cython.pointer(cython.const[uint8_t]) = vlans
            memcpy(self.f.vlans, data, 512)
