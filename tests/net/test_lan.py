"""`kvmkit network`: guests that meet by name and reach the outside, in a network namespace of the test's own."""

from __future__ import annotations

import importlib.util
import json
import os
import shutil
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest

from kvmkit.errors import BadInput, HostError
from kvmkit.net.lan import setup, state

SCRIPT = """
set -e
mount -t sysfs sysfs /sys
mount -t tmpfs tmpfs /run
ip link set lo up
ip netns add outside
ip link add up0 type veth peer name up1 netns outside
ip addr add 198.51.100.1/24 dev up0
ip link set up0 up
ip -n outside addr add 198.51.100.2/24 dev up1
ip -n outside link set up1 up
ip route add default via 198.51.100.2
"$@"
"""


@pytest.fixture
def home() -> Iterator[Path]:
    """A short path that dnsmasq, as nobody, can read in."""
    path = Path(tempfile.mkdtemp(prefix="kvmkit-lan-"))
    path.chmod(0o755)
    yield path
    shutil.rmtree(path)


def in_namespace(home: Path, *words: str) -> subprocess.CompletedProcess[str]:
    if os.getuid() != 0:
        pytest.skip("needs root")
    for program in ("unshare", "ip", "nft", "dnsmasq"):
        if shutil.which(program) is None:
            pytest.skip(f"{program} is not installed")
    if importlib.util.find_spec("pyroute2") is None:
        pytest.skip("pyroute2 is not installed")
    command = ["unshare", "--net", "--mount", "sh", "-c", SCRIPT, "sh", sys.executable, *words]
    env = {**os.environ, "KVMKIT_HOME": str(home)}
    return subprocess.run(command, capture_output=True, text=True, timeout=110, env=env)


def test_networks_are_made_and_go_without_a_trace(home: Path) -> None:
    done = in_namespace(home, str(Path(__file__).parent / "lan_checks.py"), "life")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"


@pytest.mark.guest
def test_guests_meet_by_name_and_reach_the_outside(home: Path) -> None:
    from kvmkit.guest import images
    from kvmkit.paths import cache_dir

    images.ensure()
    (home / "cache").mkdir()
    os.symlink(cache_dir() / "images", home / "cache" / "images")
    done = in_namespace(home, str(Path(__file__).parent / "lan_checks.py"), "guests")
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-1] == "done"


@pytest.mark.parametrize("text", ["10.0.0.0", "10.0.0.0/8", "10.0.0.1/24", "8.8.8.0/24", "fd00::/64", "x"])
def test_subnets_that_can_not_be(text: str) -> None:
    with pytest.raises(BadInput, match="--subnet"):
        setup.create("lab", text)


def test_without_root_it_says_how(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(home))
    monkeypatch.setattr(os, "geteuid", lambda: 1000)
    with pytest.raises(HostError, match=r"sudo kvmkit network create lab --subnet 10\.1\.0\.0/24"):
        setup.create("lab", "10.1.0.0/24")
    with pytest.raises(BadInput, match="no network lab"):
        setup.remove("lab")
    with pytest.raises(BadInput, match="sudo kvmkit network create lab"):
        state.lease("lab", "52:6b:00:00:00:01")


def test_addresses_follow_from_cards_and_are_given_once(monkeypatch: pytest.MonkeyPatch, home: Path) -> None:
    monkeypatch.setenv("KVMKIT_HOME", str(home))
    where = state.directory("lab")
    (where / "leases").mkdir(parents=True)
    lan = state.Lan(name="lab", subnet="10.73.0.0/28")
    (where / "network.json").write_bytes(json.dumps({"name": "lab", "subnet": lan.subnet}).encode())
    macs = [f"52:6b:00:00:00:{i:02x}" for i in range(13)]
    given = {mac: state.lease("lab", mac).address for mac in macs}
    assert sorted(given.values()) == sorted(str(lan.network[i]) for i in range(2, 15))
    assert state.lease("lab", macs[3]).address == given[macs[3]]
    with pytest.raises(HostError, match="all its 13 addresses are taken"):
        state.lease("lab", "52:6b:00:00:01:00")
    state.announce("lab", macs[0], "web")
    assert (where / "names").read_text() == f"10.73.0.1 host\n{given[macs[0]]} web\n"
    assert f"{macs[0]},{given[macs[0]]},web\n" in (where / "hosts").read_text()
    state.release("lab", macs[0])
    assert (where / "names").read_text() == "10.73.0.1 host\n"
    assert state.lease("lab", "52:6b:00:00:01:00").address == given[macs[0]]
