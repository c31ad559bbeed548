"""What a guest may send: everything, nothing, or to a list of addresses and ports. Looked at for each of its frames.

The guest's own headers decide nothing that they could lie about to any use: what is let through goes where its header
says. Fragments but the first, VLAN tags, IPv6's extension headers and other protocols are not let through by a list.
"""

import ipaddress

import cython
from cython.cimports.kvmkit.net.policy import (
    EVERYTHING,
    LISTED,
    MOST_ANSWERING,
    MOST_RULES,
    NOTHING_AT_ALL,
    Policy,
    Rule,
)
from cython.cimports.libc.stdint import uint8_t, uint32_t, uint64_t
from cython.cimports.libc.string import memcmp, memcpy

from kvmkit.errors import BadInput

DNS_PORT: int = 53


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _matches(
    rule: cython.pointer(cython.const[Rule]),
    version: cython.int,
    target: cython.pointer(cython.const[uint8_t]),
    port: uint32_t,
) -> cython.bint:
    if rule.version != version or (rule.port and rule.port != port):
        return False
    whole: cython.int = rule.prefix // 8
    rest: cython.int = rule.prefix % 8
    if memcmp(rule.address, target, whole):
        return False
    return not rest or (rule.address[whole] ^ target[whole]) >> (8 - rest) == 0


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _stays(version: cython.int, target: cython.pointer(cython.const[uint8_t])) -> cython.bint:
    """Whether no router passes it on: to all of a link, or to a link-local address."""
    if version == 4:
        return target[0] == 255 and target[1] == 255 and target[2] == 255 and target[3] == 255
    return (target[0] == 0xFF and target[1] == 0x02) or (target[0] == 0xFE and target[1] & 0xC0 == 0x80)


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def _allows_ip(
    p: cython.pointer(cython.const[Policy]),
    version: cython.int,
    target: cython.pointer(cython.const[uint8_t]),
    protocol: cython.int,
    rest: cython.pointer(cython.const[uint8_t]),
    length: uint64_t,
) -> cython.bint:
    """`rest`: what follows the IP header, `length` bytes of it."""
    source: uint32_t = 0
    port: uint32_t = 0  # matches rules for every port only
    i: cython.int
    if protocol == 6 or protocol == 17:
        if length < 4:
            return False
        source = cython.cast(uint32_t, rest[0]) << 8 | rest[1]
        port = cython.cast(uint32_t, rest[2]) << 8 | rest[3]
        if port == 0:
            return False
        if protocol == 17 and (port == 67 if version == 4 else port == 547) and _stays(version, target):
            return True  # DHCP
    elif version == 6 and protocol == 58:
        if length >= 1 and 133 <= rest[0] <= 136 and _stays(version, target):
            return True  # neighbours and routers
    elif version == 6 or protocol != 1:
        return False
    if protocol == 6 and length >= 14 and rest[13] & 0x10:  # no opening of a connection
        for i in range(p.answering):
            if p.ports[i] == source:
                return True
    found: cython.bint = False
    for i in range(p.count):
        if _matches(cython.address(p.rules[i]), version, target, port):
            found = True
    return found


@cython.cfunc
@cython.nogil
@cython.exceptval(check=False)
def policy_allows(
    p: cython.pointer(cython.const[Policy]), frame: cython.pointer(cython.const[uint8_t]), length: uint64_t
) -> cython.bint:
    """Whether a frame may leave, of which the first `length` bytes are at `frame`: 94 are enough for any."""
    if p.kind == EVERYTHING:
        return True
    if p.kind == NOTHING_AT_ALL or length < 14:
        return False
    kind: uint32_t = cython.cast(uint32_t, frame[12]) << 8 | frame[13]
    if kind == 0x0806:
        return True  # ARP
    header: uint64_t
    if kind == 0x0800:
        if length < 34 or frame[14] >> 4 != 4:
            return False
        header = 4 * cython.cast(uint64_t, frame[14] & 15)
        if header < 20 or length < 14 + header or (frame[20] & 0x1F) or frame[21]:
            return False
        return _allows_ip(p, 4, frame + 30, frame[23], frame + 14 + header, length - 14 - header)
    if kind == 0x86DD:
        if length < 54 or frame[14] >> 4 != 6:
            return False
        return _allows_ip(p, 6, frame + 38, frame[20], frame + 54, length - 54)
    return False


@cython.cclass
class FramePolicy:
    """`text`: "" for everything, "deny" for nothing, "dns", or "allow=" with ADDRESS[/BITS][:PORT] and "dns" by commas.

    `nameserver`: where "dns" leads; "": to port 53 of any. `answering`: TCP ports of the guest's that are published,
    from which it may answer. BadInput for what can't be.
    """

    def __init__(self, text: str = "", *, nameserver: str = "", answering: tuple = ()):
        self.text = text
        self.p.kind = EVERYTHING
        self.p.count = self.p.answering = 0
        if text in ("", "all"):
            return
        if text == "deny":
            self.p.kind = NOTHING_AT_ALL
            return
        self.p.kind = LISTED
        for port in answering[:MOST_ANSWERING]:
            self.p.ports[self.p.answering] = port
            self.p.answering += 1
        if text != "dns" and not text.startswith("allow="):
            raise BadInput(f"--policy {text}: no such policy; there are all, deny, dns and allow=ADDRESS:PORT,...")
        for part in text.removeprefix("allow=").split(","):
            if part != "dns":
                self._add(part)
            elif nameserver:
                self._add_rule(ipaddress.ip_network(nameserver), DNS_PORT)
            else:
                for everywhere in ("0.0.0.0/0", "::/0"):
                    self._add_rule(ipaddress.ip_network(everywhere), DNS_PORT)

    def _add(self, part: str) -> None:
        address, port = part, ""
        if part.startswith("["):
            address, _, port = part[1:].partition("]")
            port = port.removeprefix(":")
        elif part.count(":") == 1:
            address, _, port = part.partition(":")
        try:
            network = ipaddress.ip_network(address, strict=False)
        except ValueError:
            raise BadInput(
                f"--policy {self.text}: {part!r} is no ADDRESS[/BITS][:PORT], as 192.0.2.1:443 or [2001:db8::1]:443 are"
            ) from None
        if port and not (port.isascii() and port.isdigit() and 0 < int(port[:9]) < 65536):
            raise BadInput(f"--policy {self.text}: {part!r}: a port is a number from 1 to 65535")
        self._add_rule(network, int(port or 0))

    def _add_rule(self, network, port: int) -> None:
        if self.p.count == MOST_RULES:
            raise BadInput(f"--policy {self.text[:60]}...: more than {MOST_RULES} addresses")
        rule: cython.pointer(Rule) = cython.address(self.p.rules[self.p.count])
        packed: bytes = network.network_address.packed
        data: cython.pointer(cython.const[uint8_t]) = packed
        rule.version = network.version
        rule.prefix = network.prefixlen
        rule.port = port
        memcpy(rule.address, data, len(packed))
        self.p.count += 1

    def allows(self, frame: bytes) -> bool:
        data: cython.pointer(cython.const[uint8_t]) = frame
        return policy_allows(cython.address(self.p), data, len(frame))
