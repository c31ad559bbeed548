"""Linux sets a card's address, modes, groups, VLANs and MTU by the control queue: what the card lets through then."""

from __future__ import annotations

import contextlib
import socket
import subprocess
import sys
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from net_card import Peer, frame
from test_tap import namespace
from tests.guest.tools import tool_disk

pytestmark = pytest.mark.guest
SCRIPT = """
exec 2>&1
test -e /sys/class/net/eth0 || exit 1
modprobe 8021q; cd /sys/class/net/eth0; cat mtu; ip link set eth0 up
while read -r line; do
    case $line in
        end) exit 0;;
        count) cat statistics/rx_packets;;
        *) eval "$line"; echo "done $?";;
    esac
done
"""
BROADCAST = b"\xff" * 6
MAC, OTHER, STRANGER = (bytes.fromhex(f"5254000000{n:02x}") for n in (1, 2, 3))
GROUP, ALL_HOSTS = bytes.fromhex("01005e00aa01"), bytes.fromhex("01005e000001")


class Guest:
    """Takes lines; frames go to its card at `peer`."""

    def __init__(self, run: subprocess.Popen[str], peer: Peer) -> None:
        self.run, self.peer = run, peer

    def ask(self, line: str) -> str:
        assert self.run.stdin is not None
        assert self.run.stdout is not None
        self.run.stdin.write(line + "\n")
        self.run.stdin.flush()
        return self.run.stdout.readline().strip()

    def do(self, line: str) -> None:
        assert self.ask(line) == "done 0", line

    def takes(self, *frames: bytes) -> int:
        """How many of them the card gave it. The last one sent is always taken, and counted last."""
        before = int(self.ask("count"))
        self.peer.send(*frames, frame(BROADCAST, b"the end"))
        for _ in range(200):
            now = int(self.ask("count"))
            if now > before and self._settled(now):
                return now - before - 1
        raise AssertionError("nothing comes")

    def _settled(self, count: int) -> bool:
        return all(int(self.ask("count")) == count for _ in range(3))


@pytest.fixture
def guest(tmp_path: Path) -> Iterator[Guest]:
    path = str(tmp_path / "wire")
    with socket.socket(socket.AF_UNIX) as listener:
        listener.bind(path)
        listener.listen()
        options = ["--accel", "tcg", "--timeout", "100", "--no-vsock"]
        net = f"socket={path},mac={MAC.hex(':')},mtu=1400"
        command = [sys.executable, "-m", "kvmkit", "run", "debian", *options, "--net", net, "--", "sh", "-c", SCRIPT]
        run = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True)
        listener.settimeout(60)
        wire, _ = listener.accept()
    peer = Peer(wire)
    ended = threading.Event()
    reader = threading.Thread(target=drain, args=(wire, ended), daemon=True)
    reader.start()
    yield Guest(run, peer)
    run.kill()
    run.wait()
    for stream in (run.stdin, run.stdout):
        assert stream is not None
        with contextlib.suppress(BrokenPipeError):
            stream.close()
    ended.set()
    reader.join()
    wire.close()


def drain(wire: socket.socket, ended: threading.Event) -> None:
    """What the guest says on its own is nobody's."""
    while not ended.is_set():
        with contextlib.suppress(TimeoutError):
            wire.settimeout(0.2)
            try:
                if not wire.recv(65536):
                    return
            except TimeoutError:
                continue
            except OSError:
                return


def tagged(vlan: int, to: bytes) -> bytes:
    return to + OTHER + b"\x81\x00" + vlan.to_bytes(2, "big") + b"\x88\xb5" + bytes(60)


def test_what_linux_asks_its_card_for(guest: Guest) -> None:
    assert guest.run.stdout is not None
    assert guest.run.stdout.readline() == "1400\n"
    mine, strange, group = frame(MAC, b"x" * 60), frame(STRANGER, b"x" * 60), frame(GROUP, b"x" * 60)
    assert guest.takes(mine, mine, strange, group) == 2
    guest.do("ip link set eth0 promisc on")
    assert guest.takes(mine, strange, strange) == 3
    guest.do("ip link set eth0 promisc off")
    assert guest.takes(strange) == 0
    guest.do("f=$(cat flags); echo $((f | 0x200)) > flags")  # IFF_ALLMULTI
    assert guest.takes(group, strange) == 1
    guest.do("echo $f > flags")
    assert guest.takes(group) == 0
    assert guest.takes(frame(ALL_HOSTS, b"x" * 60), group) == 1, "a group that Linux is in by itself"
    guest.do("ip maddr add 01:00:5e:00:aa:01 dev eth0")
    assert guest.takes(group, group, strange) == 2
    guest.do(f"ip link set eth0 address {STRANGER.hex(':')}")
    assert guest.takes(strange, mine, mine) == 1
    assert guest.takes(tagged(7, STRANGER), tagged(8, STRANGER)) == 0
    guest.do("ip link add link eth0 name eth0.7 type vlan id 7")
    assert guest.takes(tagged(7, STRANGER), tagged(8, STRANGER)) == 1
    guest.do("ip link del eth0.7")
    assert guest.takes(tagged(7, STRANGER)) == 0
    guest.ask("end")


PAIRS = """
set -e
mount -t ext4 -o ro /dev/vda /mnt
ip addr add 10.99.0.2/24 dev eth0; ip link set eth0 up
for pairs in 8 1 5; do
    /mnt/bin/ethtool -L eth0 combined $pairs
    /mnt/bin/ethtool -l eth0 | tail -n 1
    ping -c 1 -W 20 10.99.0.1 > /dev/null && echo answered
done
/mnt/bin/ethtool -L eth0 combined 9 2> /dev/null || echo refused
"""


def test_queue_pairs_as_ethtool_sets_them(tmp_path: Path) -> None:
    """On a TAP device, in a network of its own; one vCPU uses one pair of those that it has set."""
    tools, name = tmp_path / "tools", "kvmkit-pairs"
    tool_disk(tools, "ethtool")
    run = f"{sys.executable} -m kvmkit run tiny --accel tcg --timeout 100 --net tap={name},queues=8 --disk {tools},ro"
    script = f"""
        mount -t sysfs sysfs /sys
        ip tuntap add dev {name} mode tap multi_queue && ip addr add 10.99.0.1/24 dev {name} && ip link set {name} up
        exec {run} -- sh -c '{PAIRS}'
    """
    done = subprocess.run([*namespace(), "sh", "-c", script], capture_output=True, text=True)
    expected = [word for pairs in (8, 1, 5) for word in ("Combined:", str(pairs), "answered")]
    assert done.stdout.split() == [*expected, "refused"], done.stderr
