"""Make a network, and take it away: the bridge by pyroute2, NAT by nft, DHCP and DNS by dnsmasq. As root."""

from __future__ import annotations

import ipaddress
import os
import shutil
import signal
import subprocess
import time
from collections.abc import Callable
from pathlib import Path

import msgspec

from kvmkit.errors import BadInput, HostError
from kvmkit.net import interface
from kvmkit.net.lan import state
from kvmkit.net.lan.state import Lan
from kvmkit.net.options import check_network

POOL = ipaddress.IPv4Network("10.73.0.0/16")
"""Where a network takes its /24 from when none is given: the first that no address or route of the host's is in."""
SMALLEST, LARGEST = 28, 16
FORWARD = Path("/proc/sys/net/ipv4/ip_forward")
END_SECONDS = 3.0

RULES = """
table inet {table} {{
	chain forward {{
		type filter hook forward priority filter;
		iifname "{bridge}" oifname "{bridge}" accept
		oifname "{bridge}" ct state established,related accept
		oifname "{bridge}" drop
	}}
	chain input {{
		type filter hook input priority filter;
		iifname "{bridge}" ct state established,related accept
		iifname "{bridge}" udp dport {{ 53, 67 }} accept
		iifname "{bridge}" tcp dport 53 accept
		iifname "{bridge}" meta l4proto {{ icmp, ipv6-icmp }} accept
		iifname "{bridge}" drop
	}}
	chain postrouting {{
		type nat hook postrouting priority srcnat;
		ip saddr {subnet} ip daddr != {subnet} masquerade
	}}
}}
"""
"""Nobody opens a connection into it from outside, nor to the host from inside, but for DNS, DHCP and ping."""


def table(lan: Lan) -> str:
    return f"kvmkit-{lan.name}"


def check_root(words: str) -> None:
    if os.geteuid() != 0:
        raise HostError(f"only root can change the host's networks: sudo kvmkit network {words}")


def check_tools() -> None:
    for program, package in (("nft", "nftables"), ("dnsmasq", "dnsmasq-base")):
        if shutil.which(program) is None:
            raise HostError(f"kvmkit network needs {program}: sudo apt-get install {package}")
    try:
        import pyroute2  # type: ignore[import-untyped]  # it has no types  # noqa: F401
    except ImportError:
        raise HostError("kvmkit network needs pyroute2: pip install pyroute2") from None


def create(name: str, subnet: str = "") -> Lan:
    """A network that is up. BadInput: it can't be, or is there. HostError: the host does not let it. All or nothing."""
    check_network(name)
    wanted = parse_subnet(subnet) if subnet else None
    check_root(f"create {name}{f' --subnet {subnet}' if subnet else ''}")
    check_tools()
    where = state.directory(name)
    if state.load(name) is not None:
        raise BadInput(f"there is a network {name} already: kvmkit network ls")
    was = next((lan.forwarding_was for lan in state.every()), FORWARD.read_text().strip())
    lan = Lan(name=name, subnet=str(wanted or free_subnet()), forwarding_was=was)
    if interface.exists(lan.bridge):
        raise BadInput(f"there is an interface {lan.bridge} already, of nobody's here: sudo ip link del {lan.bridge}")
    undo: list[Callable[[], None]] = []
    try:
        undo.append(lambda: shutil.rmtree(where, ignore_errors=True))
        (where / "leases").mkdir(parents=True)
        undo.append(lambda: _remove_bridge(lan))
        _make_bridge(lan)
        undo.append(lambda: _remove_rules(lan))
        _nft(RULES.format(table=table(lan), bridge=lan.bridge, subnet=lan.subnet))
        undo.append(lambda: _forward_no_more(lan))
        FORWARD.write_text("1")
        undo.append(lambda: _end_dnsmasq(lan))
        _start_dnsmasq(lan)
        (where / "network.json").write_bytes(msgspec.json.encode(lan))
    except BaseException as error:
        for step in reversed(undo):
            step()
        if isinstance(error, OSError):
            raise HostError(f"can't make the network {name}: {error.strerror or error}") from None
        raise
    return lan


def remove(name: str, *, force: bool = False) -> None:
    """Take a network away. BadInput: there is none, or VMs are on it and not `force`."""
    check_network(name)
    lan = state.load(name)
    if lan is None:
        raise BadInput(f"there is no network {name}: kvmkit network ls")
    check_root(f"rm {name}")
    check_tools()
    on_it = state.leases(name)
    if on_it and not force:
        names = ", ".join(each.name or each.address for each in on_it)
        raise BadInput(f"VMs are on the network {name}: {names}; end them first, or kvmkit network rm --force {name}")
    _end_dnsmasq(lan)
    _remove_rules(lan)
    _remove_bridge(lan)
    shutil.rmtree(state.directory(name), ignore_errors=True)
    _forward_no_more(lan)


def _forward_no_more(lan: Lan) -> None:
    """With the last network, as it was before the first."""
    if not state.every() and FORWARD.read_text().strip() != lan.forwarding_was:
        FORWARD.write_text(lan.forwarding_was)


def parse_subnet(text: str) -> ipaddress.IPv4Network:
    try:
        found = ipaddress.IPv4Network(text)
    except ValueError:
        raise BadInput(f"--subnet {text}: no IPv4 network, such as 10.73.5.0/24") from None
    if not LARGEST <= found.prefixlen <= SMALLEST or not found.is_private:
        raise BadInput(f"--subnet {text}: give a private network of /{LARGEST} to /{SMALLEST}, such as 10.73.5.0/24")
    return found


def free_subnet() -> ipaddress.IPv4Network:
    taken = _networks_of_host()
    for subnet in POOL.subnets(new_prefix=24):
        if not any(subnet.overlaps(other) for other in taken):
            return subnet
    raise HostError(f"no /24 of {POOL} is free: give one by --subnet")


def _networks_of_host() -> list[ipaddress.IPv4Network]:
    from pyroute2 import IPRoute

    found = []
    with IPRoute() as routes:
        for route in routes.get_routes(family=2):
            target = route.get_attr("RTA_DST")
            if target and route["dst_len"] > 0:
                found.append(ipaddress.IPv4Network(f"{target}/{route['dst_len']}", strict=False))
    return found


def _make_bridge(lan: Lan) -> None:
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as links:
            # An address of its own, or it would change with the cards that are plugged in.
            mac = ":".join(["52", "6c", *(f"{byte:02x}" for byte in os.urandom(4))])
            links.link("add", ifname=lan.bridge, kind="bridge", address=mac)
            index = links.link_lookup(ifname=lan.bridge)[0]
            links.addr("add", index=index, address=lan.gateway, prefixlen=lan.network.prefixlen)
            links.link("set", index=index, state="up")
    except NetlinkError as error:
        raise HostError(f"can't make the bridge {lan.bridge}: {error}") from None


def _remove_bridge(lan: Lan) -> None:
    from pyroute2 import IPRoute, NetlinkError

    try:
        with IPRoute() as links:
            for index in links.link_lookup(ifname=lan.bridge):
                links.link("del", index=index)
    except NetlinkError as error:
        raise HostError(f"can't remove the bridge {lan.bridge}: {error}") from None


def _nft(script: str) -> None:
    done = subprocess.run(["nft", "-f", "-"], input=script, capture_output=True, text=True)
    if done.returncode:
        what = done.stderr.strip().splitlines()
        raise HostError(f"nft: {what[0] if what else f'exit status {done.returncode}'}")


def _remove_rules(lan: Lan) -> None:
    subprocess.run(["nft", "delete", "table", "inet", table(lan)], capture_output=True)


def _start_dnsmasq(lan: Lan) -> None:
    where = state.directory(lan.name)
    for name in ("hosts", "names"):
        (where / name).write_text("" if name == "hosts" else f"{lan.gateway} host\n")
    last = lan.network[lan.network.num_addresses - 2]
    done = subprocess.run(
        [
            *("dnsmasq", "--conf-file=/dev/null", f"--pid-file={where}/dnsmasq.pid", "--bind-interfaces", "--no-hosts"),
            *(f"--interface={lan.bridge}", "--except-interface=lo", f"--listen-address={lan.gateway}"),
            *(f"--dhcp-range={lan.network[2]},{last},{lan.network.netmask},1h", f"--dhcp-hostsfile={where}/hosts"),
            *(f"--dhcp-leasefile={where}/dnsmasq.leases", f"--addn-hosts={where}/names", "--dhcp-authoritative"),
            *("--user=nobody", "--group=nogroup", "--log-facility=/dev/null", "--leasefile-ro"),
        ],
        capture_output=True,
        text=True,
        cwd="/",
    )
    if done.returncode:
        what = done.stderr.strip().splitlines()
        raise HostError(f"dnsmasq: {what[-1].strip() if what else f'exit status {done.returncode}'}")


def _end_dnsmasq(lan: Lan) -> None:
    pid = state.dnsmasq_pid(lan.name)
    if not pid:
        return
    os.kill(pid, signal.SIGTERM)
    until = time.monotonic() + END_SECONDS
    while state.dnsmasq_pid(lan.name) and time.monotonic() < until:
        time.sleep(0.01)
    if state.dnsmasq_pid(lan.name):
        os.kill(pid, signal.SIGKILL)
