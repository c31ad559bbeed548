"""What is kept of a network, until the host restarts: <run>/networks/NAME/network.json, and who is on it.

    network.json   its subnet, and what to undo         leases/MAC   a VM's address, name and process
    hosts names    for dnsmasq, made of the leases      dnsmasq.pid  dnsmasq.leases

<run> is /run/kvmkit, or below KVMKIT_HOME.
"""

from __future__ import annotations

import fcntl
import ipaddress
import os
import signal
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec

from kvmkit.errors import BadInput, HostError
from kvmkit.net.options import BRIDGE_PREFIX, check_network

SYSTEM = Path("/run/kvmkit")


class Lan(msgspec.Struct, frozen=True, kw_only=True):
    """A network: its addresses, of which the first is the host's own."""

    name: str
    subnet: str
    forwarding_was: str = "1"
    """The host's net.ipv4.ip_forward before the first network."""

    @property
    def bridge(self) -> str:
        return BRIDGE_PREFIX + self.name

    @property
    def network(self) -> ipaddress.IPv4Network:
        return ipaddress.IPv4Network(self.subnet)

    @property
    def gateway(self) -> str:
        return str(self.network[1])


class Lease(msgspec.Struct, kw_only=True):
    """A VM's address. It holds as long as its process lives."""

    mac: str
    address: str
    pid: int
    ticks: int
    name: str = ""


def base() -> Path:
    given = os.environ.get("KVMKIT_HOME", "")
    return (Path(given).absolute() / "run" if given else SYSTEM) / "networks"


def directory(name: str) -> Path:
    check_network(name)
    return base() / name


def load(name: str) -> Lan | None:
    """The network of that name; None: there is none."""
    try:
        return msgspec.json.decode((directory(name) / "network.json").read_bytes(), type=Lan)
    except (OSError, msgspec.DecodeError):
        return None


def need(name: str) -> Lan:
    """BadInput, with the command that makes it, when there is none."""
    found = load(name)
    if found is None:
        known = [lan.name for lan in every()]
        have = f"; there are {', '.join(known)}" if known else ""
        raise BadInput(f"network={name}: there is no such network{have}: sudo kvmkit network create {name}")
    return found


def every() -> list[Lan]:
    try:
        names = sorted(os.listdir(base()))
    except OSError:
        return []
    return [lan for name in names if not name.startswith(".") and (lan := load(name)) is not None]


@contextmanager
def locked(name: str) -> Iterator[None]:
    """Nobody else changes it meanwhile."""
    try:
        fd = os.open(directory(name), os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    except OSError as error:
        raise HostError(f"network={name}: can't open {directory(name)}: {error.strerror}") from None
    try:
        fcntl.flock(fd, fcntl.LOCK_EX)
        yield
    finally:
        os.close(fd)


def leases(name: str) -> list[Lease]:
    """Of VMs whose process lives; those of others are removed where that can be done."""
    found = []
    for path in sorted((directory(name) / "leases").glob("*")):
        try:
            lease = msgspec.json.decode(path.read_bytes(), type=Lease)
        except (OSError, msgspec.DecodeError):
            continue
        if process_ticks(lease.pid) == lease.ticks:
            found.append(lease)
        else:
            try:
                path.unlink()
            except OSError:
                pass
    return found


def lease(name: str, mac: str) -> Lease:
    """An address for a card, the same each time while it is free. BadInput, HostError."""
    lan = need(name)
    with locked(name):
        held = {each.mac: each for each in leases(name)}
        taken = {each.address for each in held.values() if each.mac != mac}
        first = int.from_bytes(bytes.fromhex(mac.replace(":", ""))[2:], "big")
        places = lan.network.num_addresses - 3  # all but the network's own, the host's and the last
        for step in range(places):
            address = str(lan.network[2 + (first + step) % places])
            if address not in taken:
                break
        else:
            raise HostError(f"network={name}: all its {places} addresses are taken")
        own = Lease(mac=mac, address=address, pid=os.getpid(), ticks=process_ticks(os.getpid()))
        own.name = held[mac].name if mac in held else ""
        _store(name, own)
    return own


def announce(name: str, mac: str, vm: str) -> None:
    """Have the others find it by its VM's name."""
    with locked(name):
        for own in leases(name):
            if own.mac == mac:
                own.name = vm
                _store(name, own)


def release(name: str, mac: str) -> None:
    with locked(name):
        (directory(name) / "leases" / mac.replace(":", "-")).unlink(missing_ok=True)
        publish(name)


def _store(name: str, own: Lease) -> None:
    path = directory(name) / "leases" / own.mac.replace(":", "-")
    try:
        _replace(path, msgspec.json.encode(own))
        publish(name)
    except OSError as error:
        raise HostError(
            f"network={name}: {error.strerror}; only root can put a VM on it: sudo kvmkit run ..."
        ) from None


def publish(name: str) -> None:
    """Write the leases where dnsmasq looks, and have it look."""
    lan = need(name)
    where = directory(name)
    hosts = [f"{lan.gateway} host\n"]
    dhcp = []
    for each in leases(name):
        dhcp.append(f"{each.mac},{each.address}{f',{each.name}' if each.name else ''}\n")
        if each.name:
            hosts.append(f"{each.address} {each.name}\n")
    _replace(where / "names", "".join(hosts).encode())
    _replace(where / "hosts", "".join(dhcp).encode())
    pid = dnsmasq_pid(name)
    if pid:
        os.kill(pid, signal.SIGHUP)


def dnsmasq_pid(name: str) -> int:
    """Its dnsmasq's; 0: it does not run."""
    try:
        pid = int((directory(name) / "dnsmasq.pid").read_text())
        words = Path(f"/proc/{pid}/cmdline").read_bytes().split(b"\0")
    except (OSError, ValueError):
        return 0
    return pid if os.fsencode(f"--pid-file={directory(name)}/dnsmasq.pid") in words else 0


def _replace(path: Path, data: bytes) -> None:
    work = path.with_name(f".{path.name}.{os.getpid()}")
    work.write_bytes(data)
    work.chmod(0o644)
    work.rename(path)


def process_ticks(pid: int) -> int:
    """When a process began, in clock ticks since boot; 0: there is none. Source: proc(5)."""
    try:
        with open(f"/proc/{pid}/stat", "rb") as file:
            return int(file.read().rpartition(b") ")[2].split()[19])
    except (OSError, ValueError, IndexError):
        return 0
